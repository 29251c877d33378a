//! From the bytes that travel to what is asked.
//!
//! `cargo bench -p revocast-benches --bench decode`

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use revocast_benches::{COUNTS, SALT, fingerprints, present_keys};
use revocast_core::{ExactList, ExactListBuilder, FilterBuf, FilterParams, Width, rice};

fn decode(criterion: &mut Criterion) {
    for (name, count) in COUNTS {
        let sorted = fingerprints(&present_keys(count));
        let count = sorted.len() as u64;
        let code = rice::encode(&sorted, Width::W48).expect("sorted fingerprints");
        let list = ExactList::from_sorted(&sorted, Width::W48).expect("sorted fingerprints");
        let params = FilterParams::for_target(count, 1e-2, SALT).expect("a rate within reach");
        let mut group = criterion.benchmark_group(format!("decode/{name}"));
        group.throughput(Throughput::Elements(count)).sample_size(50);
        group.bench_function("code to fingerprints", |bencher| {
            bencher.iter(|| rice::decode(&code, count, Width::W48));
        });
        group.bench_function("code to list", |bencher| {
            bencher.iter(|| {
                let mut builder = ExactListBuilder::new(count, Width::W48).expect("a count within limits");
                for fingerprint in rice::Decoder::new(&code, count, Width::W48).expect("a code of ours") {
                    builder.push(fingerprint.expect("a code of ours")).expect("sorted fingerprints");
                }
                builder.finish()
            });
        });
        group.bench_function("list to filter", |bencher| {
            bencher.iter(|| FilterBuf::build(params, list.iter()));
        });
        group.bench_function("verify a list", |bencher| bencher.iter(|| list.verify()));
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    targets = decode
}
criterion_main!(benches);
