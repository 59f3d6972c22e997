//! Every chore of the project is a subcommand.
fn main() {}
