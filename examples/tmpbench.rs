use registry_mox::{config::Config, engine::Engine, frame::*, model::RegisterVersion};
use std::time::Instant;
fn main() {
    let mut config = Config::default();
    if std::env::args().nth(1).as_deref() == Some("frozen") { config.push.quiet = std::time::Duration::from_secs(10); }
    let e = Engine::open(config).unwrap();
    let url = "10.20.1.17:12200?rpcVer=51302&serialization=hessian2&weight=100&appName=orders&p=1&v=4.0&_SERIALIZETYPE=hessian2&_WEIGHT=100&app_name=orders&startTime=1795393505864";
    let mut frames: Vec<Vec<u8>> = (0..1024).map(|i| {
        let p = Publisher { register_id: format!("00000000-0000-0007-0000-00000000{i:04}").into(), version: RegisterVersion { version: 0, timestamp: 1 }, cell: "DEFAULT_ZONE".into(), app_name: "orders".into(), payloads: vec![url.as_bytes().into()], ..Publisher::default() };
        encode_publish("registry", &format!("com.example.orders.api.OrderService{i}:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA"), &p).unwrap()
    }).collect();
    let vpos: Vec<usize> = frames.iter().map(|f| { let src = 4+1+2+8; let l = u16::from_le_bytes([f[src], f[src+1]]) as usize; src+2+l+1 }).collect();
    for round in 0..6 {
        let n = 1_000_000u64; let t = Instant::now();
        for k in 0..n { let i = (k & 1023) as usize; let v = (round * n + k) as i64; frames[i][vpos[i]..vpos[i]+8].copy_from_slice(&v.to_le_bytes()); std::hint::black_box(e.apply(&frames[i]).unwrap()); }
        println!("publish newer {:.0} ns", t.elapsed().as_nanos() as f64 / n as f64);
        let t = Instant::now();
        for k in 0..n { let i = (k & 1023) as usize; std::hint::black_box(e.apply(&frames[i]).unwrap()); }
        println!("publish same {:.0} ns", t.elapsed().as_nanos() as f64 / n as f64);
        let t = Instant::now();
        for k in 0..n { let i = (k & 1023) as usize; std::hint::black_box(decode(&frames[i]).unwrap()); }
        println!("decode {:.0} ns", t.elapsed().as_nanos() as f64 / n as f64);
    }
}
