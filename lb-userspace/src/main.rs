//! The binary: everything is in the library, for its tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    weir::cli::main()
}
