# The front door: everything that is built, tested or baked goes through a target of this file, and so does CI.
# `make` alone lists them. Parameters are given as `make rootfs BASE=template.ext4 OUT=new.ext4`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

ARCH ?= amd64
RUST_ARCH := $(if $(filter arm64,$(ARCH)),aarch64,x86_64)
MUSL := $(RUST_ARCH)-unknown-linux-musl
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
HOST_BIN := $(TARGET_DIR)/host
GUEST_BIN := $(TARGET_DIR)/$(MUSL)/release
STAND_IN := $(TARGET_DIR)/$(MUSL)/host/envd-stand-in
OUT ?= rootfs.ext4
# A target of the whole workspace, not of one package: those would differ in the features of what they share, and build it each anew.
BUILD := cargo build --profile host --workspace

# Read by the programs themselves; exported so that values with spaces arrive whole.
export BASE ENVD OUT SIZE INIT ARCH CONFIG SERVICES ACCEPT_LOST_UNITS VM_KERNEL VM_ACCEL ONLY SEED COUNT ENVD_REPO ENVD_REV

# arm64 is linked by the linker that comes with Rust: no cross toolchain is needed.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER ?= rust-lld

.PHONY: help setup build guest host stand-in rootfs payload arm64 dist demo run test bench chaos units fuzz lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what all targets need (Debian packages, musl target, kernel, vhost-device-vsock, SDK)
	@scripts/setup build images vm sdk lint

build: guest host ## build the guest's programs and the host's tools

guest:
	@scripts/setup build
	@scripts/build-guest $(RUST_ARCH)

host:
	@scripts/setup build
	@$(BUILD) --bin envdctl --bin rootfs

stand-in:
	@scripts/setup build
	@cargo build --profile host --target $(MUSL) -p stand-in

rootfs: guest host $(if $(ENVD),,stand-in) ## bake rootfs.ext4 [BASE=dir|tar|ext4|-] [ENVD=path] [OUT=path] [SIZE=mb] [INIT=native|keep] [ARCH=arm64]
	@scripts/setup images
	@$(HOST_BIN)/rootfs bake --guest "$(GUEST_BIN)" $(if $(ENVD),,--stand-in "$(STAND_IN)")

payload: guest host ## make the tar to ADD in a template's Dockerfile
	@$(HOST_BIN)/rootfs payload --guest "$(GUEST_BIN)" --arch "$(ARCH)" --out "$(TARGET_DIR)/payload.tar"

arm64: ## bake an arm64 image and boot it under emulation to a healthy stand-in (slow)
	@scripts/setup build images arm64
	@scripts/arm64-check

dist: host ## make a release: binaries, payload and checksums for both architectures
	@scripts/dist

demo: build stand-in ## bake, boot, run the E2B SDK over TCP, vsock, TCP [ENVD=path] [VM_KERNEL=path]
	@scripts/setup images vm sdk
	@$(BUILD) --bin demo
	@scripts/as-root $(HOST_BIN)/demo

run: build stand-in ## boot the image with its console on this terminal [ENVD=path] [VM_KERNEL=path]
	@scripts/setup images vm
	@$(BUILD) --bin run
	@scripts/as-root $(HOST_BIN)/run

test: build stand-in ## run all tests, on real VMs too; ends with `N passed, N failed`
	@scripts/setup images vm sdk
	@cargo test --profile host --workspace --no-run --quiet
	@scripts/as-root scripts/test

bench: build stand-in ## measure speed and memory beside peers [ONLY=boot|memory|idle|relay|bridge|supervise|images|units]
	@scripts/setup images vm
	@$(BUILD) --bin bench
	@scripts/as-root $(HOST_BIN)/bench

chaos: build stand-in ## break things on purpose and count what is lost [ONLY=name] [SEED=n] [COUNT=n]
	@scripts/setup images vm
	@$(BUILD) --bin chaos
	@scripts/as-root $(HOST_BIN)/chaos

units: build stand-in ## boot Debian's nginx, postgresql, redis, sshd, chrony, cron under our PID 1 [ENVD=path] [VM_KERNEL=path]
	@scripts/setup images vm
	@scripts/as-root cargo test --profile host --workspace --test units_vm -- --ignored

fuzz: ## drive every parser with hostile input [ONLY=name] [COUNT=n]
	@scripts/setup build fuzz
	@scripts/fuzz

lint: ## check format, lints, scripts and dependencies
	@scripts/setup build lint
	@scripts/lint

clean: ## remove what was built; downloads in target/tools and target/cache stay
	@find "$(TARGET_DIR)" -mindepth 1 -maxdepth 1 ! -name tools ! -name cache -exec rm -rf {} +
