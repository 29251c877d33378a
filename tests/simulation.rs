//! A thousand simulated worlds, each replayed by its seed; see `revocast_tests::sim`.

use revocast_tests::sim::{self, Tally};

/// Worlds that CI runs; `REVOCAST_SEEDS` overrides.
const SEEDS: u64 = 1_000;

#[test]
fn no_world_shows_a_revoked_token_as_good_and_all_come_to_rest() {
    let seeds = match std::env::var("REVOCAST_SEEDS") {
        Ok(text) => text.parse().expect("REVOCAST_SEEDS is a number"),
        Err(_) => SEEDS,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let share = |thread: u64| {
        let mut total = Tally::default();
        let mut violations = Vec::new();
        for seed in (thread..seeds).step_by(threads as usize) {
            match sim::run(seed, false) {
                Ok(tally) => total.add(&tally),
                Err(violation) => violations.push(violation.to_string()),
            }
        }
        (total, violations)
    };
    let mut total = Tally::default();
    let mut violations = Vec::new();
    std::thread::scope(|scope| {
        let shares: Vec<_> = (0..threads).map(|thread| scope.spawn(move || share(thread))).collect();
        for part in shares {
            let (tally, found) = part.join().expect("a world that panics names its seed above");
            total.add(&tally);
            violations.extend(found);
        }
    });
    assert!(violations.is_empty(), "{} of {seeds} worlds:\n{}", violations.len(), violations.join("\n"));
    println!("{seeds} worlds: {total:?}");
    if seeds < 20 {
        return;
    }
    // A simulation in which nothing happens shows nothing: every kind of thing must have.
    for (what, count) in [
        ("question", total.questions),
        ("answer revoked", total.revoked),
        ("answer not revoked", total.not_revoked),
        ("answer suspect", total.suspect),
        ("answer unknown", total.unknown),
        ("ledger entry", total.entries),
        ("epoch", total.epochs),
        ("refusal", total.refusals),
        ("restart of a device", total.device_restarts),
        ("crash of the server", total.server_crashes),
        ("question to the server", total.asked),
        ("answer of the server that clears", total.cleared),
        ("answer of the server that condemns", total.condemned),
    ] {
        assert!(count >= seeds / 10, "{count} times in {seeds} worlds: {what}");
    }
}
