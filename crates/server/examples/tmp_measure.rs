use revocast_core::{Fingerprinter, FingerprintFunction, RealmId, RealmKey, Sequence, UnixTime, Width};
use revocast_server::ledger::*;
use std::{sync::Arc, time::Instant};
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    let rows: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let each: usize = std::env::args().nth(3).unwrap().parse().unwrap();
    let id = RealmId::new("a").unwrap();
    let now = UnixTime::from_secs(1_800_000_000);
    let ledger = Arc::new(SqliteLedger::open(&dir).unwrap());
    let f = Fingerprinter::new(FingerprintFunction::Sha256, RealmKey([7; 16]), Width::W48);
    ledger.create_realm(Realm::new(id, "i", f, now), vec![]).await.unwrap();
    let req = |jti: String| Request { action: Action::Revoke { jti, exp: Expiry::Claimed(now) }, reason: None, actor: "admin".into() };
    let t = Instant::now();
    for batch in 0..rows / 10_000 {
        let reqs = (0..10_000).map(|n| req(format!("{:032x}-{batch:03}", (n as u128 * 10_000 + batch as u128).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)))).collect();
        ledger.append(id, now, reqs).await.unwrap();
    }
    if rows > 0 { println!("batches: {rows} rows, {:.0} rows/s", rows as f64 / t.elapsed().as_secs_f64()); }
    let t = Instant::now();
    let tasks: Vec<_> = (0..64).map(|w| { let ledger = ledger.clone(); tokio::spawn(async move {
        for n in 0..each { let r = Request { action: Action::Revoke { jti: format!("w{w:03}-{n:032}"), exp: Expiry::Claimed(now) }, reason: None, actor: "admin".into() };
            ledger.append(id, now, vec![r]).await.unwrap(); } }) }).collect();
    for t in tasks { t.await.unwrap(); }
    if each > 0 { println!("64 writers: {} acks, {:.0}/s", 64 * each, 64. * each as f64 / t.elapsed().as_secs_f64()); }
    let t = Instant::now();
    let n = ledger.scan(id, Sequence(0), usize::MAX).await.unwrap().len();
    println!("scan {n}: {:?} = {:.0} rows/s", t.elapsed(), n as f64 / t.elapsed().as_secs_f64());
    drop(ledger);
    let t = Instant::now();
    let ledger = SqliteLedger::open(&dir).unwrap();
    println!("open: {:?}", t.elapsed());
    if rows > 0 && std::env::args().nth(4).is_some() {
        let t = Instant::now();
        println!("expire {}: {:?}", ledger.expire(id, now.plus(31*86400)).await.unwrap(), t.elapsed());
    }
}
