//! Sensors that the kernel shows as files: hwmon, thermal zones, RAPL, throttle counters, pressure, memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{EnergyCounter, Memory, Pressure, Reading};

/// Files of one folder that are looked at: more is no machine that we know.
const ENTRIES_MAX: usize = 512;
/// What a sensor may say, in degrees: anything else is a sensor that isn't connected.
const CELSIUS: std::ops::RangeInclusive<f64> = -40.0..=150.0;
/// The same for watts.
const WATTS: std::ops::RangeInclusive<f64> = 0.0..=5_000.0;

/// Everything there is below `root`.
pub(super) fn read(root: &Path) -> Reading {
    let mut reading = Reading { pressures: pressures(root), memory: memory(root), ..Reading::default() };
    hwmon(root, &mut reading);
    zones(root, &mut reading.temperatures);
    powercap(root, &mut reading.counters);
    reading.throttles = throttles(root);
    reading
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn number(path: &Path) -> Option<f64> {
    text(path)?.parse().ok().filter(|number: &f64| number.is_finite())
}

/// What is in a folder, in the order of names.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.take(ENTRIES_MAX).filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or("")
}

fn hottest(temperatures: &mut BTreeMap<&'static str, f64>, kind: &'static str, celsius: f64) {
    if CELSIUS.contains(&celsius) {
        let known = temperatures.entry(kind).or_insert(celsius);
        *known = known.max(celsius);
    }
}

/// What a chip or zone of this name measures.
fn kind(name: &str) -> &'static str {
    const CPU: &[&str] = &["coretemp", "k10temp", "zenpower", "cpu", "x86_pkg_temp", "soc_thermal", "tctl"];
    const GPU: &[&str] = &["amdgpu", "radeon", "nouveau", "i915", "xe", "gpu"];
    const DISK: &[&str] = &["nvme", "drivetemp"];
    const BOARD: &[&str] = &["acpitz", "nct", "it87", "asus", "gigabyte", "dell", "thinkpad", "pch"];
    let of = |list: &[&str]| list.iter().any(|known| name.starts_with(known));
    let kinds = [("cpu", CPU), ("gpu", GPU), ("disk", DISK), ("board", BOARD)];
    kinds.into_iter().find(|(_, list)| of(list)).map_or("other", |(kind, _)| kind)
}

/// `/sys/class/hwmon`: temperatures in thousandths of a degree, power in millionths of a watt.
fn hwmon(root: &Path, reading: &mut Reading) {
    for chip in entries(&root.join("sys/class/hwmon")) {
        let kind = kind(&text(&chip.join("name")).unwrap_or_default().to_lowercase());
        let mut watts = None;
        for file in entries(&chip) {
            let name = name(&file);
            if name.starts_with("temp") && name.ends_with("_input") {
                if let Some(milli) = number(&file) {
                    hottest(&mut reading.temperatures, kind, milli / 1e3);
                }
            } else if kind == "gpu" && matches!(name, "power1_average" | "power1_input") {
                watts = number(&file).map(|micro| micro / 1e6).filter(|watts| WATTS.contains(watts)).or(watts);
            }
        }
        if let Some(watts) = watts {
            *reading.watts.entry("gpu").or_insert(0.0) += watts;
        }
    }
}

/// `/sys/class/thermal`, for machines whose processor isn't in hwmon.
fn zones(root: &Path, temperatures: &mut BTreeMap<&'static str, f64>) {
    let in_hwmon = temperatures.clone();
    for zone in entries(&root.join("sys/class/thermal")) {
        let Some(kind) = text(&zone.join("type")).map(|kind| self::kind(&kind.to_lowercase().replace('-', "_"))) else {
            continue;
        };
        if let Some(milli) = number(&zone.join("temp")).filter(|_| !in_hwmon.contains_key(kind)) {
            hottest(temperatures, kind, milli / 1e3);
        }
    }
}

/// `/sys/class/powercap`: energy of whole packages, in millionths of a joule. Their parts (`intel-rapl:0:0`) are in them.
fn powercap(root: &Path, counters: &mut BTreeMap<String, EnergyCounter>) {
    for zone in entries(&root.join("sys/class/powercap")) {
        let id = name(&zone);
        let whole = id.starts_with("intel-rapl:") && id.matches(':').count() == 1;
        let package = text(&zone.join("name")).is_some_and(|name| name.starts_with("package"));
        if !whole || !package {
            continue;
        }
        if let Some(micro) = number(&zone.join("energy_uj")) {
            let range = number(&zone.join("max_energy_range_uj")).unwrap_or(0.0) / 1e6;
            counters.insert(id.to_owned(), EnergyCounter { source: "package", joules: micro / 1e6, range });
        }
    }
}

/// Of all cores together, and of each package once.
fn throttles(root: &Path) -> Option<u64> {
    let mut sum = None;
    for cpu in entries(&root.join("sys/devices/system/cpu")) {
        let digits = name(&cpu).strip_prefix("cpu").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
        if !digits {
            continue;
        }
        let count = |file: &str| number(&cpu.join("thermal_throttle").join(file));
        if let Some(core) = count("core_throttle_count") {
            // Every core of a package tells the package's count.
            let package = count("package_throttle_count").filter(|_| name(&cpu) == "cpu0").unwrap_or(0.0);
            *sum.get_or_insert(0) += (core + package) as u64;
        }
    }
    sum
}

/// `/proc/pressure`: `some avg10=0.12 avg60=… avg300=… total=MICROSECONDS`.
fn pressures(root: &Path) -> Vec<Pressure> {
    let mut found = Vec::new();
    for resource in ["cpu", "memory", "io"] {
        let Some(text) = text(&root.join("proc/pressure").join(resource)) else { continue };
        for kind in ["some", "full"] {
            let Some(line) = text.lines().find_map(|line| line.strip_prefix(kind)) else { continue };
            let field = |key: &str| -> Option<f64> {
                line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
            };
            if let (Some(percent), Some(total)) = (field("avg10"), field("total")) {
                let (ratio, seconds) = ((percent / 100.0).clamp(0.0, 1.0), total / 1e6);
                found.push(Pressure { resource, kind, ratio, seconds });
            }
        }
    }
    found
}

/// `/proc/meminfo`: kibibytes.
fn memory(root: &Path) -> Option<Memory> {
    let text = text(&root.join("proc/meminfo"))?;
    let field = |key: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let (swap_total, swap_free) = (field("SwapTotal").unwrap_or(0), field("SwapFree").unwrap_or(0));
    Some(Memory {
        total: field("MemTotal")?,
        available: field("MemAvailable")?,
        swap_total,
        swap_used: swap_total.saturating_sub(swap_free),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine made of files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
            fs::write(path, text).expect("room");
        }
        root
    }

    #[test]
    fn everything_is_read_in_base_units() {
        let root = machine(&[
            ("sys/class/hwmon/hwmon0/name", "k10temp\n"),
            ("sys/class/hwmon/hwmon0/temp1_input", "61500\n"),
            ("sys/class/hwmon/hwmon0/temp3_input", "72125\n"),
            ("sys/class/hwmon/hwmon1/name", "amdgpu\n"),
            ("sys/class/hwmon/hwmon1/temp1_input", "55000\n"),
            ("sys/class/hwmon/hwmon1/power1_average", "48000000\n"),
            ("sys/class/hwmon/hwmon2/name", "nvme\n"),
            ("sys/class/hwmon/hwmon2/temp1_input", "40850\n"),
            ("sys/class/thermal/thermal_zone0/type", "x86_pkg_temp\n"),
            ("sys/class/thermal/thermal_zone0/temp", "99000\n"),
            ("sys/class/thermal/thermal_zone1/type", "acpitz\n"),
            ("sys/class/thermal/thermal_zone1/temp", "27800\n"),
            ("sys/class/powercap/intel-rapl:0/name", "package-0\n"),
            ("sys/class/powercap/intel-rapl:0/energy_uj", "123456789\n"),
            ("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "65532610987\n"),
            ("sys/class/powercap/intel-rapl:0:0/name", "core\n"),
            ("sys/class/powercap/intel-rapl:0:0/energy_uj", "99\n"),
            ("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "3\n"),
            ("sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", "5\n"),
            ("sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "4\n"),
            ("sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count", "5\n"),
            ("sys/devices/system/cpu/cpufreq/x", "1\n"),
            (
                "proc/pressure/memory",
                "some avg10=12.50 avg60=1.00 avg300=0.00 total=2500000\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=10\n",
            ),
            ("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 400 kB\nSwapTotal: 50 kB\nSwapFree: 20 kB\n"),
        ]);
        let reading = read(root.path());
        let temperatures = [("board", 27.8), ("cpu", 72.125), ("disk", 40.85), ("gpu", 55.0)];
        assert_eq!(reading.temperatures, BTreeMap::from(temperatures), "hwmon's word on the processor counts");
        assert_eq!(reading.watts, BTreeMap::from([("gpu", 48.0)]));
        let counter = reading.counters["intel-rapl:0"];
        assert_eq!((reading.counters.len(), counter.source), (1, "package"), "a part is in the whole");
        assert!((counter.joules - 123.456_789).abs() < 1e-9 && (counter.range - 65_532.610_987).abs() < 1e-6);
        assert_eq!(reading.throttles, Some(12));
        let some = Pressure { resource: "memory", kind: "some", ratio: 0.125, seconds: 2.5 };
        assert_eq!((reading.pressures.len(), reading.pressures[0]), (2, some));
        let memory = Memory { total: 1_024_000, available: 409_600, swap_total: 51_200, swap_used: 30_720 };
        assert_eq!(reading.memory, Some(memory));
    }

    #[test]
    fn nonsense_is_no_reading() {
        let root = machine(&[
            ("sys/class/hwmon/hwmon0/name", "coretemp\n"),
            ("sys/class/hwmon/hwmon0/temp1_input", "-128000\n"),
            ("sys/class/hwmon/hwmon0/temp2_input", "hot\n"),
            ("sys/class/hwmon/hwmon0/temp3_input", "NaN\n"),
            ("sys/class/hwmon/hwmon1/name", "amdgpu\n"),
            ("sys/class/hwmon/hwmon1/power1_input", "-1\n"),
            ("sys/class/powercap/intel-rapl:0/name", "package-0\n"),
            ("sys/class/powercap/intel-rapl:0/energy_uj", "\n"),
            ("proc/pressure/memory", "some avg10=x total=\n"),
            ("proc/meminfo", "MemTotal: many kB\n"),
        ]);
        assert_eq!(read(root.path()), Reading::default());
    }
}
