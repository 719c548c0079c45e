//! Attacks by publishers, and slips of the operator, on an engine in this process: threads call it as those of a session server
//! do. Memory is that of this process, so what the attack itself takes is in it.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use harness::nth;
use registry_mox::testing::{host::engine::Engine, registry::frame};
use serde_json::{Value, json};

use crate::{
    Result, Size,
    scene::{Outcome, Scene, Target, has, publish, publisher, resource, unpublish},
};

const MB: u64 = 1_000_000;
/// Longest that a call of a registry's thread may wait.
const CALL: Duration = Duration::from_millis(5);
/// Between two calls of a thread whose calls are measured.
const PACE: Duration = Duration::from_micros(300);

fn engine(target: &Target) -> Result<&Arc<Engine>> {
    target.engine.as_ref().ok_or_else(|| "publishers call an engine of this process".into())
}

/// The time that this thread could have run and had no processor, in nanoseconds.
fn not_run(schedstat: &File) -> u64 {
    let mut text = [0; 64];
    let read = schedstat.read_at(&mut text, 0).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[..read]);
    text.split(' ').nth(1).and_then(|nanos| nanos.parse().ok()).unwrap_or_default()
}

/// Calls of another thread, one after the other, until `work` has ended; the longest, without the time for which the machine
/// had no processor for it.
fn beside<T>(call: impl Fn(usize) + Sync, work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| -> Result<Duration> {
            let schedstat = File::open("/proc/thread-self/schedstat")?;
            let (mut longest, mut n) = (Duration::ZERO, 0);
            while !stop.load(Relaxed) {
                let (begin, waited) = (Instant::now(), not_run(&schedstat));
                call(n);
                let away = Duration::from_nanos(not_run(&schedstat) - waited);
                longest = longest.max(begin.elapsed().saturating_sub(away));
                n += 1;
                std::thread::sleep(PACE);
            }
            Ok(longest)
        });
        let done = work();
        stop.store(true, Relaxed);
        let longest = caller.join().map_err(|_| "the caller panicked")??;
        Ok((done?, longest))
    })
}

/// The longest of the calls in each round, and a bound on the median of them.
fn bound_of_calls(scene: &mut Scene, mut rounds: Vec<Duration>) {
    rounds.sort();
    let Some(median) = rounds.get(rounds.len() / 2).copied() else { return };
    scene.longest(median);
    scene.bound_of_time("a call 5 ms", median <= CALL);
}

/// A call of a registry's thread that takes the lock of a shard, each time of another, and changes nothing: the publisher is
/// known in a newer version.
fn call(engine: &Engine, n: usize) {
    publish(engine, &nth(n % 100), "r0", 0, &["10.200.0.1:12200".to_owned()]);
}

fn addresses(network: usize, many: usize) -> Vec<String> {
    (0..many).map(|n| format!("11.{network}.{}.{}:80?weight=7&app_name=evil", n >> 8, n & 255)).collect()
}

pub(crate) fn oversized(size: Size) -> Result<Outcome> {
    let mut scene = Scene::here(size, 1_000 / size.divisor.min(10), &json!({}))?;
    let before = scene.status()?["store"]["endpoints"].as_u64();
    let data: Vec<Vec<String>> = (0..8).map(|network| addresses(network, 65_535 / size.divisor)).collect();
    let version = AtomicI64::new(1);
    let longest = std::sync::Mutex::new(Vec::new());
    scene.attack(|target, _, stop| {
        let engine = engine(target)?;
        let evil = || {
            loop {
                for (n, data) in data.iter().enumerate() {
                    publish(engine, &harness::id("Evil"), &format!("e{n}"), version.fetch_add(1, Relaxed), data);
                    std::thread::sleep(Duration::from_millis(20));
                }
                if stop.load(Relaxed) {
                    return Ok(());
                }
            }
        };
        let ((), longer) = beside(|n| call(engine, n), evil)?;
        longest.lock().map_err(|_| "a panic")?.push(longer);
        Ok(())
    })?;
    let now = scene.status()?["store"]["endpoints"].as_u64();
    let more = now.zip(before).map_or(0, |(now, before)| now - before);
    scene.bound(format!("{more} of them count"), more <= 8 * 64);
    bound_of_calls(&mut scene, longest.into_inner()?);
    scene.bound_of_memory(160 * MB);
    scene.end()
}

pub(crate) fn removals(size: Size) -> Result<Outcome> {
    const LIMIT: usize = 256 << 20;
    let mut scene = Scene::here(size, 1_000 / size.divisor.min(10), &json!({ "limits": { "bytes": LIMIT } }))?;
    let (removed, newcomers) = (AtomicUsize::new(0), AtomicUsize::new(0));
    scene.attack(|target, round, stop| {
        let engine = engine(target)?;
        loop {
            let from = removed.fetch_add(10_000, Relaxed);
            for n in from..from + 10_000 {
                unpublish(engine, &harness::id(format_args!("Never{}", n % 500)), &format!("never-{n}"), 1);
            }
            let newcomer = newcomers.fetch_add(1, Relaxed);
            let data = [format!("10.201.{}.1:80", newcomer % 250)];
            if !publish(engine, &nth(newcomer % 100), &format!("newcomer-{newcomer}"), 1 + round as i64, &data) {
                return Err("a newcomer was refused".into());
            }
            std::thread::sleep(Duration::from_millis(20));
            if stop.load(Relaxed) {
                return Ok(());
            }
        }
    })?;
    let store = &scene.status()?["store"];
    let bytes = store["tombstoneBytes"].as_u64().unwrap_or(u64::MAX);
    let (removed, newcomers) = (removed.into_inner(), newcomers.into_inner());
    scene.bound(format!("{} of {} MB remembered of {removed}", bytes / MB, LIMIT as u64 / 8 / MB), {
        bytes <= LIMIT as u64 / 8
    });
    scene.bound(format!("0 of {newcomers} newcomers refused"), store["dropped"] == 0);
    scene.bound_of_memory(128 * MB);
    scene.end()
}

pub(crate) fn additions(size: Size) -> Result<Outcome> {
    let many = size.of(50_000);
    let settings =
        json!({ "protect": { "massAddSettle": "0s", "massAddServices": size.of(1_000), "massAddHold": "1h" } });
    let mut scene = Scene::here(size, 1_000 / size.divisor.min(10), &settings)?;
    let served = |scene: &Scene| Ok::<_, crate::Error>(scene.status()?["served"]["services"].as_u64().unwrap_or(0));
    let before = served(&scene)?;
    scene.attack(|target, _, stop| {
        let engine = engine(target)?;
        let mut version = 1;
        loop {
            for n in 0..many {
                let id = format!("com.evil.S{n}:1.0@DEFAULT#@#evil-team#@#SOFA");
                publish(engine, &id, "e", version, &[format!("10.202.{}.{}:80", n >> 8 & 255, n & 255)]);
            }
            version += 1;
            std::thread::sleep(Duration::from_millis(500));
            if stop.load(Relaxed) {
                return Ok(());
            }
        }
    })?;
    let more = served(&scene)? - before;
    // More than so many, and more than half of what is served, wait.
    let most = size.of(1_000).max(before as usize / 2);
    scene.bound(format!("{more} of {many} served"), more as usize <= most);
    scene.bound_of_memory(150 * MB);
    scene.end()
}

/// A tenant registers services and takes them all back at once, while others' providers go one by one.
pub(crate) fn tenant(size: Size) -> Result<Outcome> {
    const SERVICES: usize = 450;
    const OTHERS: usize = 20;
    let mut scene = Scene::here(size, 1_000 / size.divisor.min(10), &json!({}))?;
    let evil = |n: usize| format!("com.evil.S{n}:1.0@DEFAULT#@#evil-team#@#SOFA");
    let target = scene.target.clone();
    let engine = Arc::clone(engine(&target)?);
    for n in 0..SERVICES {
        publish(&engine, &evil(n), "e", 1, &[format!("10.203.{}.{}:80", n >> 8, n & 255)]);
    }
    let last = format!("com.evil.s{}", SERVICES - 1);
    scene.until(|resources| resource(resources, &last).is_some())?;
    // A provider of another tenant's service goes; when the good client hears of it.
    let removal = |scene: &Scene, n: usize| -> Result<Duration> {
        let name = format!("/com.example.s{n}");
        let address = format!("10.{}.{}.3", 1 + n / 250, n % 250);
        let said = Instant::now();
        unpublish(&engine, &nth(n), "r3", 9);
        let heard = scene.until(|all| resource(all, &name).is_some_and(|found| !has(found, &address)));
        Ok(heard?.saturating_duration_since(said))
    };
    scene.attack(|_, _, _| Ok(()))?;
    let calm = (0..OTHERS).map(|n| removal(&scene, n)).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    for n in 0..SERVICES {
        unpublish(&engine, &evil(n), "e", 9);
    }
    let during = (OTHERS..2 * OTHERS).map(|n| removal(&scene, n)).collect::<Result<Vec<_>>>()?;
    let took = begun.elapsed();
    let withheld = scene.status()?["publisher"]["withheldServices"].as_array().map_or(0, Vec::len);
    scene.waited(calm, during);
    // One that does not arrive is an error.
    scene.bound(format!("{OTHERS} of {OTHERS} removals of others arrived in {:.1} s", took.as_secs_f64()), true);
    scene.bound(format!("{withheld} shown of the tenant's {SERVICES} withheld"), withheld > 0);
    scene.end()
}

/// A read of the large service is applied again and again, and so are single changes of it.
pub(crate) fn large(size: Size) -> Result<Outcome> {
    let many = size.of(100_000);
    let mut scene = Scene::here(size, 1_000 / size.divisor.min(10), &json!({}))?;
    let service = harness::id("Large");
    let register_id = |n: usize| format!("11111111-2222-3333-4444-{n:012}");
    let read = |version: i64, publishers: i64| -> Result<Vec<u8>> {
        let data: Vec<(String, [String; 1])> = (0..many)
            .map(|n| {
                let address = format!("10.{}.{}.{}", 100 + (n >> 16), n >> 8 & 255, n & 255);
                let url = format!("{address}:12200?rpcVer=51302&weight=100&app_name=big&startTime=1795393505864");
                (register_id(n), [url])
            })
            .collect();
        let publishers: Vec<_> = data.iter().map(|(id, data)| publisher(id, publishers, data)).collect();
        Ok(frame::encode_replace("registry", &service, version, 0, &publishers)?)
    };
    let (longest, reads) = (std::sync::Mutex::new(Vec::new()), AtomicUsize::new(0));
    scene.attack(|target, round, stop| {
        let engine = engine(target)?;
        // Every other read has all publishers in another version.
        let from = 1 + 10 * round as i64;
        let frames = (from..from + 4).map(|n| read(n, 1 + n / 2)).collect::<Result<Vec<_>>>()?;
        let call = |n: usize| match n % 8 {
            0 => drop(publish(engine, &service, &register_id(0), 0, &[])),
            _ => call(engine, n),
        };
        let ((), longer) = beside(call, || {
            for frame in frames.iter().cycle() {
                engine.apply(frame)?;
                reads.fetch_add(1, Relaxed);
                if stop.load(Relaxed) {
                    break;
                }
            }
            Ok(())
        })?;
        longest.lock().map_err(|_| "a panic")?.push(longer);
        Ok(())
    })?;
    let publishers = scene.status()?["store"]["publishers"].as_u64().unwrap_or_default() as usize;
    scene.bound(format!("{many} publishers kept, {} reads", reads.into_inner()), publishers >= many);
    bound_of_calls(&mut scene, longest.into_inner()?);
    scene.end()
}

/// Changes the engine and waits until that is served, again and again, beside calls of another thread; the median of how long
/// that took, and the longest call of each round.
fn again(scene: &mut Scene, change: impl Fn(&Engine) -> Result<()> + Sync) -> Result<(Duration, Vec<Duration>)> {
    let (longest, took) = (std::sync::Mutex::new(Vec::new()), std::sync::Mutex::new(Vec::new()));
    scene.attack(|target, _, stop| {
        let engine = engine(target)?;
        let waits = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ((), longer) = beside(
            |n| call(engine, n),
            || {
                loop {
                    let begun = Instant::now();
                    change(engine)?;
                    waits.block_on(engine.flush());
                    took.lock().map_err(|_| "a panic")?.push(begun.elapsed());
                    if stop.load(Relaxed) {
                        return Ok(());
                    }
                }
            },
        )?;
        longest.lock().map_err(|_| "a panic")?.push(longer);
        Ok(())
    })?;
    let mut took = took.into_inner()?;
    took.sort();
    Ok((took[took.len() / 2], longest.into_inner()?))
}

/// The overrides' port changes at once for all of them, again and again.
pub(crate) fn policy(size: Size) -> Result<Outcome> {
    let (services, overrides) = (size.of(50_000), size.of(500));
    let mut scene = Scene::here(size, services, &json!({}))?;
    let document = |port: i64| -> Result<_> {
        let all = (0..overrides).map(|n| (format!("com.example.*S*{n}:*@DEFAULT#*"), json!({ "port": port })));
        let all: serde_json::Map<String, Value> = all.collect();
        Ok(serde_json::from_value(json!({ "overrides": all }))?)
    };
    let port = AtomicI64::new(1_000);
    let (median, longest) = again(&mut scene, |engine| {
        engine.set_policy(document(port.fetch_add(1, Relaxed))?)?;
        Ok(())
    })?;
    scene.bound_of_time(format!("served after {:.1} s", median.as_secs_f64()), median < Duration::from_secs(5));
    bound_of_calls(&mut scene, longest);
    scene.end()
}

/// An application has so many instances of so many interfaces, and one instance more comes.
pub(crate) fn direct(size: Size) -> Result<Outcome> {
    let (interfaces, instances) = (1_000 / size.divisor.min(20), 200 / size.divisor.min(10));
    let settings = json!({ "policy": { "direct": { "applications": ["hot"] } } });
    let mut scene = Scene::here(size, 1_000 / size.divisor.min(10), &settings)?;
    let target = scene.target.clone();
    let all = |engine: &Engine, instance: usize, version: i64| {
        for interface in 0..interfaces {
            let data = [format!("10.150.{}.{}:12200?app_name=hot", instance >> 8, instance & 255)];
            publish(engine, &harness::id(format_args!("Hot{interface}")), &format!("i{instance}"), version, &data);
        }
    };
    let waits = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for instance in 0..instances {
        all(engine(&target)?, instance, 1);
    }
    waits.block_on(engine(&target)?.flush());
    let next = AtomicUsize::new(instances);
    let (median, longest) = again(&mut scene, |engine| {
        all(engine, next.fetch_add(1, Relaxed), 1);
        Ok(())
    })?;
    scene.bound_of_time(format!("served after {:.2} s", median.as_secs_f64()), median < Duration::from_secs(2));
    bound_of_calls(&mut scene, longest);
    scene.end()
}
