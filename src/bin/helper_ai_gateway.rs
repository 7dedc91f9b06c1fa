//! The gateway: the one process of helper_ai that runs the local model and reads documents. The extension starts it;
//! nobody else needs to.

use helper_ai::gateway;

fn main() -> std::process::ExitCode {
    gateway::main(std::env::args().skip(1).collect())
}
