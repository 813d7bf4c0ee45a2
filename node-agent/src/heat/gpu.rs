//! NVIDIA accelerators through NVML, which is loaded when the driver is there and missed by nobody when it isn't.

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;

use super::{EnergyCounter, Reading};

/// Accelerators that are looked at.
const DEVICES_MAX: u32 = 16;

/// The library, once it was looked for.
#[derive(Default)]
pub(super) enum Gpus {
    #[default]
    Unknown,
    Absent,
    There(Box<Nvml>),
}

impl Gpus {
    /// A machine without any.
    #[cfg(test)]
    pub(super) fn absent() -> Self {
        Self::Absent
    }

    /// Adds what they say to a reading.
    pub(super) fn add_to(&mut self, reading: &mut Reading) {
        if matches!(self, Self::Unknown) {
            *self = match Nvml::init() {
                Ok(nvml) => Self::There(Box::new(nvml)),
                Err(error) => {
                    tracing::debug!(%error, "no NVML: accelerators of NVIDIA aren't watched");
                    Self::Absent
                }
            };
        }
        let Self::There(nvml) = self else { return };
        for index in 0..nvml.device_count().unwrap_or(0).min(DEVICES_MAX) {
            // One that fell off its bus doesn't hide the others.
            let Ok(device) = nvml.device_by_index(index) else { continue };
            if let Ok(celsius) = device.temperature(TemperatureSensor::Gpu) {
                let hottest = reading.temperatures.entry("gpu").or_insert(0.0);
                *hottest = hottest.max(f64::from(celsius));
            }
            if let Ok(milliwatts) = device.power_usage() {
                *reading.watts.entry("gpu").or_insert(0.0) += f64::from(milliwatts) / 1e3;
            }
            if let Ok(millijoules) = device.total_energy_consumption() {
                let counter = EnergyCounter { source: "gpu", joules: millijoules as f64 / 1e3, range: 0.0 };
                reading.counters.insert(format!("nvml:{index}"), counter);
            }
            if let Ok(reasons) = device.current_throttle_reasons() {
                let hot = ThrottleReasons::HW_THERMAL_SLOWDOWN | ThrottleReasons::SW_THERMAL_SLOWDOWN;
                reading.gpu_throttled |= reasons.intersects(hot);
            }
        }
    }
}
