//! The program beside the database.

fn main() {
    if std::env::args().nth(1).as_deref() == Some("parse") {
        std::process::exit(helper_ai::gateway::parse::child_main());
    }
}
