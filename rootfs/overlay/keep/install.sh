#!/bin/sh
# Puts envd-init's keep mode into the machine it runs on, or takes it out again. The image's init stays.
#
#   install.sh [--dry-run] [--root DIR] [--no-restart]     install (from the unpacked payload that this script lies in)
#   install.sh --uninstall [--dry-run] [--root DIR]        take it out; envd then runs as its own service says
#
#   --root DIR      work on the tree at DIR, start and stop nothing
#   --no-restart    do not restart envd now; it comes under the wrapper when it is next started
#
# Exit codes: 0 done, 1 failed (what was done is said), 2 wrong usage, 3 the init is neither systemd nor OpenRC,
# 4 not root.
set -eu

dry=
root=
restart=yes
action=install
usage() { sed -n '2,11s/^# \{0,1\}//p' "$0"; }
fail() { code=$1; shift; echo "install.sh: $*" >&2; exit "$code"; }
say() { echo "install.sh: $*"; }
run() { if [ -n "$dry" ]; then echo "would run: $*"; else "$@"; fi }

while [ $# -gt 0 ]; do
	case $1 in
	--dry-run) dry=yes ;;
	--uninstall) action=uninstall ;;
	--no-restart) restart= ;;
	--root) [ $# -ge 2 ] || fail 2 "--root needs a folder"; root=${2%/}; shift ;;
	--help | -h) usage; exit 0 ;;
	*) usage >&2; fail 2 "unknown option $1" ;;
	esac
	shift
done

home=/usr/lib/envd-init
here=$(cd "$(dirname "$0")" && pwd -P)
# The payload's own root: this script is installed as usr/lib/envd-init/install.sh.
case $here in
*/usr/lib/envd-init) source=${here%/usr/lib/envd-init} ;;
*) fail 2 "this script lies in $here; run it where the payload was unpacked: usr/lib/envd-init/install.sh" ;;
esac

programs="$home/init $home/install.sh"
program_links="$home/envd-wrapper $home/vsock-relay"
systemd_files="/usr/lib/systemd/system/envd.service.d/zz-envd-init.conf
/usr/lib/systemd/system/envd-init-relay.service"
systemd_link=/usr/lib/systemd/system/sysinit.target.wants/envd-init-relay.service
openrc_files="/etc/rc.conf.d/envd-init.conf
/etc/init.d/envd-init-relay"
openrc_link=/etc/runlevels/default/envd-init-relay

# Whether an init runs that can be told: neither with --root nor while a container image is built.
live() { [ -z "$root" ] && { [ -d /run/systemd/system ] || [ -d /run/openrc ]; }; }

# What the init is: the one that runs, or the one that would.
which_init() {
	if live; then
		if [ -d /run/systemd/system ]; then echo systemd; else echo openrc; fi
		return
	fi
	init=$(readlink "$root/sbin/init" 2>/dev/null || true)
	case $init in
	*systemd) echo systemd ;;
	*openrc-init) echo openrc ;;
	*) if grep -qs '^[^#]*openrc' "$root/etc/inittab" "$root/etc/init.d/rc"; then echo openrc; else echo "${init:-/sbin/init}"; fi ;;
	esac
}

# Copies to a temporary name and renames: a program that runs is replaced, never written into.
put() {
	[ -e "$source$1" ] || fail 1 "$source$1 is not in the payload"
	[ "$source$1" -ef "$root$1" ] && return 0
	if [ -n "$dry" ]; then echo "would write $root$1"; return 0; fi
	mkdir -p "$root${1%/*}"
	cp -p "$source$1" "$root$1.new" && chown 0:0 "$root$1.new" && mv -f "$root$1.new" "$root$1"
}

put_link() {
	if [ -n "$dry" ]; then echo "would link $root$1 to $2"; return 0; fi
	mkdir -p "$root${1%/*}"
	ln -sf "$2" "$root$1"
}

take() {
	[ -e "$root$1" ] || [ -L "$root$1" ] || return 0
	if [ -n "$dry" ]; then echo "would remove $root$1"; else rm -f "$root$1"; fi
}

reload() {
	live || return 0
	[ "$init" = systemd ] && run systemctl daemon-reload
	return 0
}

start_all() {
	live || return 0
	case $init in
	systemd)
		run systemctl restart envd-init-relay.service
		[ -z "$restart" ] || run systemctl restart envd.service
		;;
	openrc)
		run rc-service envd-init-relay restart
		# Stopped by the settings that it was started with.
		[ -z "$restart" ] || run rc-service envd restart
		;;
	esac
}

do_install() {
	for file in $programs; do put "$file"; done
	for link in $program_links; do put_link "$link" init; done
	case $init in
	systemd)
		for file in $systemd_files; do put "$file"; done
		put_link "$systemd_link" ../envd-init-relay.service
		;;
	openrc)
		for file in $openrc_files; do put "$file"; done
		put_link "$openrc_link" /etc/init.d/envd-init-relay
		;;
	esac
	reload
	start_all
	[ -n "$dry" ] || say "keep mode is in, beside $init"
}

do_uninstall() {
	if live; then
		case $init in
		systemd) run systemctl stop envd-init-relay.service || true ;;
		openrc) run rc-service envd-init-relay stop || true; [ -z "$restart" ] || run rc-service envd stop || true ;;
		esac
	fi
	for file in $systemd_link $openrc_link $systemd_files $openrc_files; do take "$file"; done
	reload
	if live && [ -n "$restart" ]; then
		case $init in
		systemd) run systemctl restart envd.service ;;
		openrc) run rc-service envd start ;;
		esac
	fi
	for file in $program_links $programs; do take "$file"; done
	for folder in /usr/lib/systemd/system/envd.service.d /etc/rc.conf.d "$home"; do
		[ -n "$dry" ] || rmdir "$root$folder" 2>/dev/null || true
	done
	[ -n "$dry" ] || say "keep mode is out; envd runs as its own service says"
}

[ -n "$dry" ] || [ "$(id -u)" = 0 ] || fail 4 "this needs root"
init=$(which_init)
case $init in
systemd | openrc) ;;
*)
	[ "$action" = uninstall ] ||
		fail 3 "the init is $init: keep mode knows systemd and OpenRC; bake with INIT=native to replace it"
	;;
esac
do_$action
