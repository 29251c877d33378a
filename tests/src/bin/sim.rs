//! Runs simulated worlds: `sim --seeds 1000 --from 0 [--trace]`.

use std::process::ExitCode;

use revocast_tests::sim::{self, Tally};

fn main() -> ExitCode {
    let (mut seeds, mut from, mut trace) = (1_000, 0, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
        match (argument.as_str(), &mut seeds, &mut from) {
            ("--trace", ..) => trace = true,
            ("--seeds", seeds, _) => match number() {
                Some(found) => *seeds = found,
                None => return usage(),
            },
            ("--from", _, from) => match number() {
                Some(found) => *from = found,
                None => return usage(),
            },
            _ => return usage(),
        }
    }
    let mut total = Tally::default();
    let mut failed = 0_u64;
    for seed in from..from + seeds {
        match sim::run(seed, trace) {
            Ok(tally) => total.add(&tally),
            Err(violation) => {
                println!("{violation}");
                failed += 1;
            }
        }
    }
    println!("{seeds} worlds, {failed} violations; {total:?}");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    eprintln!("usage: sim [--seeds N] [--from SEED] [--trace]");
    ExitCode::from(2)
}
