"""The official E2B SDK's calls, as a user writes them, against localhost:49983.

    steps.py MODE          MODE: calls | after-kill | whoami

One JSON line a step: {"name": …, "ok": …, "seconds": …, "detail": …}. Tokens are random, so that no canned answer passes.
"""

import json
import os
import secrets
import sys
import time

os.environ["E2B_DEBUG"] = "true"
os.environ.setdefault("E2B_API_KEY", "e2b_" + "0" * 40)

from e2b import CommandExitException, Sandbox  # noqa: E402  (the environment comes first)


def step(name, action):
    begin = time.monotonic()
    try:
        detail, ok = action(), True
    except Exception as error:  # whatever the SDK raises is the step's failure
        detail, ok = f"{type(error).__name__}: {error}", False
    seconds = round(time.monotonic() - begin, 3)
    print(json.dumps({"name": name, "ok": ok, "seconds": seconds, "detail": str(detail or "")}), flush=True)
    return ok


def expect(found, wanted):
    if found != wanted:
        raise AssertionError(f"got {found!r} instead of {wanted!r}")


def create(box):
    box.append(Sandbox.create())
    if not box[0].is_running():
        raise AssertionError("the sandbox is not running")


def echo(sandbox):
    expect(sandbox.commands.run("echo Hello").stdout, "Hello\n")
    token = secrets.token_hex(8)
    # What every image has: `rev` is a package of its own in newer Debians.
    expect(sandbox.commands.run(f"echo {token} | tr a-f A-F").stdout, token.upper() + "\n")


def python(sandbox):
    expect(sandbox.commands.run('python3 -c "print(1+1)"').stdout, "2\n")
    a, b = secrets.randbelow(10**6), secrets.randbelow(10**6)
    expect(sandbox.commands.run(f'python3 -c "print({a}*{b})"').stdout, f"{a * b}\n")


def file(sandbox):
    path, content = f"/tmp/{secrets.token_hex(4)} ü.txt", secrets.token_hex(4096)
    sandbox.files.write(path, content)
    expect(sandbox.files.read(path), content)


def failing(sandbox):
    token = secrets.token_hex(8)
    try:
        sandbox.commands.run(f"echo {token} >&2; exit 3")
    except CommandExitException as end:
        expect((end.exit_code, end.stderr), (3, token + "\n"))
        return
    raise AssertionError("exit status 3 was not reported")


def calls():
    box = []
    if not step("create", lambda: create(box)):
        return False
    steps = [("echo", echo), ("python", python), ("file", file), ("stderr and exit 3", failing)]
    return all([step(name, lambda action=action: action(box[0])) for name, action in steps])


def after_kill():
    """Says that it is ready, and makes its first call the moment it is told that envd was killed."""
    sandbox = Sandbox.create()
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.readline()
    return step("call at once after the kill", lambda: echo(sandbox))


def whoami():
    return step("id -un", lambda: expect(Sandbox.create().commands.run("id -un").stdout, "user\n"))


if __name__ == "__main__":
    sys.exit(0 if {"calls": calls, "after-kill": after_kill, "whoami": whoami}[sys.argv[1]]() else 1)
