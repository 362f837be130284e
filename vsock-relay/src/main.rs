//! The relay alone, for its tests. What images get is the program of all roles: `multicall/`.

fn main() -> std::process::ExitCode {
    vsock_relay::program::main()
}
