//! Taking in what is new: a delta from its sealed bytes to a set that checkers see.
//!
//! Ours verifies a signature and leaves the set that checkers are reading untouched; the opponents
//! insert in place, with nobody reading and nothing to verify.
//!
//! `cargo bench -p revocast-benches --bench apply`

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bloomfilter::Bloom;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastbloom::BloomFilter;
use revocast_benches::{Keys, NOW, RATE, forge, present_keys, replica};
use revocast_core::{Action, Address, Event};

/// Entries of the base that a delta comes on top of.
const HELD: usize = 1_000_000;

fn apply(criterion: &mut Criterion) {
    let present = present_keys(HELD);
    let forge = forge();
    for count in [1_usize, 1_000] {
        let new = Keys::new(5, count);
        let texts = new.texts();
        let mut group = criterion.benchmark_group(format!("apply/{count} to 1 million"));
        group.throughput(Throughput::Elements(count as u64)).sample_size(20);

        let mut replica = replica(&forge, &present);
        let mut head = HELD as u64;
        group.bench_function("revocast: verify, decode, apply, expose", |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    // Each delta is the next in sequence, about the same keys; sealing it is not timed.
                    let payload = forge.delta(&forge.delta_meant((head, head + 1), &texts, &[], 1));
                    head += 1;
                    let started = Instant::now();
                    replica.handle(NOW, Event::Packet { address: Address::Live, payload: &payload });
                    let exposed =
                        std::iter::from_fn(|| replica.poll_action()).find(|action| matches!(action, Action::Expose(_)));
                    spent += started.elapsed();
                    assert!(exposed.is_some() && replica.set().position().sequence.0 == head, "not applied");
                    while replica.poll_action().is_some() {}
                }
                spent
            });
        });

        let mut bloomfilter = Bloom::<str>::new_for_fp_rate(HELD, RATE).expect("a rate within reach");
        group.bench_function("bloomfilter: insert", |bencher| {
            bencher.iter(|| texts.iter().for_each(|text| bloomfilter.set(text)));
        });
        let mut fastbloom = BloomFilter::with_false_pos(RATE).expected_items(HELD);
        group.bench_function("fastbloom: insert", |bencher| {
            bencher.iter(|| {
                for text in &texts {
                    fastbloom.insert(*text);
                }
            });
        });
        let mut set: HashSet<String> = present.texts().iter().map(|&text| text.to_owned()).collect();
        group.bench_function("HashSet<String>: insert", |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let started = Instant::now();
                    for text in &texts {
                        set.insert((*text).to_owned());
                    }
                    spent += started.elapsed();
                    for text in &texts {
                        set.remove(*text);
                    }
                }
                spent
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    targets = apply
}
criterion_main!(benches);
