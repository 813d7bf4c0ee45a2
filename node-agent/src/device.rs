//! What this machine has, measured at start: cores, instruction sets, memory, bandwidth and f32 speed.

use std::time::{Duration, Instant};

use ingle_proto::v1;
use sysinfo::System;

/// Told when nothing was measured: a slow machine of ten years ago.
const BANDWIDTH_UNMEASURED: f64 = 10e9;
/// Likewise, operations per second.
const COMPUTE_UNMEASURED: f64 = 20e9;
/// Larger than the caches of the machines we know.
const BUFFER_BYTES: usize = 192 << 20;
/// Values per thread that the compute loop turns over: they stay in the first-level cache.
const LANES: usize = 256;

/// The machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Logical cores that this process may use.
    pub cores: usize,
    /// Bytes of memory: of the machine, or of the control group's limit if that is less.
    pub memory_bytes: u64,
    /// Bytes per second, all threads, reading.
    pub memory_bandwidth: f64,
    /// f32 operations per second, all threads, of a plain compiled loop: what our portable code reaches, not the peak.
    pub compute_f32: f64,
    /// Names as compilers use them.
    pub instruction_sets: Vec<String>,
    /// The processor's name.
    pub cpu: String,
}

impl Device {
    /// Looks at the machine and measures for about `budget` with `threads` threads; with no budget nothing is measured
    /// and modest figures are told. Blocks: not for async code.
    #[must_use]
    pub fn measure(threads: usize, budget: Duration) -> Self {
        let mut system = System::new();
        system.refresh_memory();
        let limit = system.cgroup_limits().map(|limits| limits.total_memory).filter(|bytes| *bytes > 0);
        let memory_bytes = limit.map_or(system.total_memory(), |limit| limit.min(system.total_memory()));
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (memory_bandwidth, compute_f32) = if budget.is_zero() {
            (BANDWIDTH_UNMEASURED, COMPUTE_UNMEASURED)
        } else {
            let bytes = BUFFER_BYTES.min(usize::try_from(memory_bytes / 16).unwrap_or(BUFFER_BYTES)).max(1 << 20);
            (bandwidth(threads, bytes, budget / 2), compute(threads, budget / 3))
        };
        Self {
            cores,
            memory_bytes,
            memory_bandwidth,
            compute_f32,
            instruction_sets: instruction_sets().into_iter().map(str::to_owned).collect(),
            cpu: cpu_name(),
        }
    }

    /// As told to the coordinator. `reserve` bytes are left to the system.
    #[must_use]
    pub fn capacity(&self, reserve: u64, backend: String, slots: u32) -> v1::Capacity {
        v1::Capacity {
            cores: u32::try_from(self.cores).unwrap_or(u32::MAX),
            memory_bytes: self.memory_bytes,
            memory_budget_bytes: self.memory_bytes.saturating_sub(reserve),
            memory_bandwidth: self.memory_bandwidth,
            compute_f32: self.compute_f32,
            instruction_sets: self.instruction_sets.clone(),
            cpu: self.cpu.clone(),
            backend,
            slots,
            devices: vec!["cpu".to_owned()],
        }
    }
}

/// Bytes of memory that could be had now without swapping; 0 if the system doesn't say.
#[must_use]
pub fn memory_available() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    let free = system.available_memory();
    match system.cgroup_limits() {
        Some(limits) if limits.total_memory > 0 => free.min(limits.free_memory),
        _ => free,
    }
}

/// The name people gave this machine.
#[must_use]
pub fn host_name() -> String {
    System::host_name().unwrap_or_else(|| "node".to_owned())
}

fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        matches!(key.trim(), "model name" | "Model" | "Hardware").then(|| value.trim().to_owned())
    });
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    [
        ("sse4.2", has!("sse4.2")),
        ("avx", has!("avx")),
        ("avx2", has!("avx2")),
        ("fma", has!("fma")),
        ("f16c", has!("f16c")),
        ("avxvnni", has!("avxvnni")),
        ("avx512f", has!("avx512f")),
        ("avx512bw", has!("avx512bw")),
        ("avx512vl", has!("avx512vl")),
        ("avx512vnni", has!("avx512vnni")),
        ("avx512bf16", has!("avx512bf16")),
        ("avx512fp16", has!("avx512fp16")),
    ]
    .into_iter()
    .filter_map(|(name, present)| present.then_some(name))
    .collect()
}

#[cfg(target_arch = "aarch64")]
fn instruction_sets() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected as has;
    [
        ("neon", has!("neon")),
        ("fp16", has!("fp16")),
        ("dotprod", has!("dotprod")),
        ("i8mm", has!("i8mm")),
        ("bf16", has!("bf16")),
        ("sve", has!("sve")),
    ]
    .into_iter()
    .filter_map(|(name, present)| present.then_some(name))
    .collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instruction_sets() -> Vec<&'static str> {
    Vec::new()
}

/// Each thread fills its own share and reads it over and over until time is up.
fn bandwidth(threads: usize, bytes: usize, budget: Duration) -> f64 {
    let share = bytes / threads.max(1) / 8;
    let rates = on_threads(threads, |thread| {
        let data: Vec<u64> = vec![thread as u64 + 1; share];
        let begun = Instant::now();
        let (mut read, mut sum) = (0u64, 0u64);
        loop {
            sum = sum.wrapping_add(data.iter().fold(0, |sum, value| sum ^ *value));
            read += (share * 8) as u64;
            let spent = begun.elapsed();
            if spent >= budget {
                std::hint::black_box(sum);
                return read as f64 / spent.as_secs_f64();
            }
        }
    });
    rates.iter().sum()
}

fn compute(threads: usize, budget: Duration) -> f64 {
    let rates = on_threads(threads, |thread| {
        let mut values = [1.0f32 + thread as f32 * 1e-3; LANES];
        let (scale, shift) = (std::hint::black_box(0.999_f32), std::hint::black_box(0.001_f32));
        let begun = Instant::now();
        let mut operations = 0u64;
        loop {
            for _ in 0..2000 {
                for value in &mut values {
                    *value = *value * scale + shift;
                }
            }
            operations += 2000 * 2 * LANES as u64;
            let spent = begun.elapsed();
            if spent >= budget {
                std::hint::black_box(values);
                return operations as f64 / spent.as_secs_f64();
            }
        }
    });
    rates.iter().sum()
}

fn on_threads(threads: usize, work: impl Fn(usize) -> f64 + Sync) -> Vec<f64> {
    let work = &work;
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.max(1)).map(|thread| scope.spawn(move || work(thread))).collect();
        handles.into_iter().filter_map(|handle| handle.join().ok()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let device = Device::measure(1, Duration::from_millis(20));
        assert!(device.cores >= 1 && device.memory_bytes > 64 << 20, "{device:?}");
        assert!(device.memory_bandwidth > 1e6 && device.compute_f32 > 1e6, "{device:?}");
        assert!(!device.cpu.is_empty());
        assert!(memory_available() > 0);
        let capacity = device.capacity(1 << 20, "fake".into(), 3);
        assert_eq!(capacity.memory_budget_bytes, device.memory_bytes - (1 << 20));
        assert_eq!(capacity.slots, 3);
    }

    #[test]
    fn a_reserve_above_all_memory_leaves_nothing() {
        let device = Device::measure(1, Duration::ZERO);
        assert_eq!(device.capacity(u64::MAX, String::new(), 1).memory_budget_bytes, 0);
        assert!(device.memory_bandwidth > 0.0, "an estimate needs a figure");
    }
}
