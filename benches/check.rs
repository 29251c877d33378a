//! One question, hash included: ours beside what people use today.
//!
//! `cargo bench -p revocast-benches --bench check`

use std::collections::HashSet;
use std::hint::black_box;
use std::time::Duration;

use bloomfilter::Bloom;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use fastbloom::BloomFilter;
use revocast_benches::{COUNTS, Exact, Keys, RATE, Rotation, absent_keys, fingerprints, present_keys};

fn check(criterion: &mut Criterion) {
    let absent = absent_keys();
    for (name, count) in COUNTS {
        let present = present_keys(count);
        let opponents = Opponents::new(&present, count);
        let questions: [(&str, fn(Vec<&str>) -> Rotation<'_>, &Keys); 2] = [
            ("absent", |texts| Rotation::new(texts), &absent),
            ("present", |texts| Rotation::shuffled(texts), &present),
        ];
        for (kind, rotate, keys) in questions {
            let mut group = criterion.benchmark_group(format!("check/{name}/{kind}"));
            group.throughput(Throughput::Elements(1));
            let mut ask = |what: &str, question: &dyn Ask| question.bench(&mut group, what, rotate(keys.texts()));
            ask("revocast exact", &Asked(|text: &str| opponents.ours.contains(text)));
            ask("revocast filter", &Asked(|text: &str| opponents.ours.maybe(text)));
            ask("revocast list", &Asked(|text: &str| opponents.ours.listed(text)));
            ask("bloomfilter", &Asked(|text: &str| opponents.bloomfilter.check(text)));
            ask("fastbloom", &Asked(|text: &str| opponents.fastbloom.contains(text)));
            ask("HashSet<String>", &Asked(|text: &str| opponents.set.contains(text)));
            group.finish();
        }
    }
}

/// Everything that is asked, holding the same keys.
struct Opponents {
    ours: Exact,
    bloomfilter: Bloom<str>,
    fastbloom: BloomFilter,
    set: HashSet<String>,
}

impl Opponents {
    fn new(keys: &Keys, count: usize) -> Self {
        let texts = keys.texts();
        let mut bloomfilter = Bloom::<str>::new_for_fp_rate(count, RATE).expect("a rate within reach");
        let mut fastbloom = BloomFilter::with_false_pos(RATE).expected_items(count);
        for text in &texts {
            bloomfilter.set(text);
            fastbloom.insert(*text);
        }
        let set = texts.iter().map(|&text| text.to_owned()).collect();
        Self {
            ours: Exact::new(&fingerprints(keys)),
            bloomfilter,
            fastbloom,
            set,
        }
    }
}

/// A question that can be measured. The closure behind it stays known to the compiler.
trait Ask {
    fn bench(&self, group: &mut BenchmarkGroup<'_, WallTime>, name: &str, keys: Rotation<'_>);
}

struct Asked<F>(F);

impl<F: Fn(&str) -> bool> Ask for Asked<F> {
    fn bench(&self, group: &mut BenchmarkGroup<'_, WallTime>, name: &str, mut keys: Rotation<'_>) {
        group.bench_function(name, |bencher| bencher.iter(|| (self.0)(black_box(keys.next_key()))));
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    targets = check
}
criterion_main!(benches);
