"""Runs shell commands for the campaign, over vsock: a way into the guest past envd, the relay and the network.

A request is a length (4 bytes, big-endian) and a command; the answer is its status and its output with a length before it.
"""

import socket
import struct
import subprocess
import threading

PORT = 7001


def read(stream, count):
    data = b""
    while len(data) < count:
        piece = stream.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def serve(stream):
    with stream:
        try:
            command = read(stream, struct.unpack(">I", read(stream, 4))[0]).decode()
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            stream.sendall(struct.pack(">iI", done.returncode, len(done.stdout)) + done.stdout)
        except (OSError, EOFError):
            pass


listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
listener.bind((socket.VMADDR_CID_ANY, PORT))
listener.listen(128)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
