//! One token says that the process is to end; signals set it.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Shared by everything that must stop. Clones are the same token.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// Nothing has asked yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everything to stop.
    pub fn begin(&self) {
        self.0.cancel();
    }

    /// Whether it has been asked.
    #[must_use]
    pub fn begun(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Ends once it has been asked.
    pub fn wait(&self) -> WaitForCancellationFutureOwned {
        self.0.clone().cancelled_owned()
    }

    /// The token itself, for code that takes one.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.0.clone()
    }

    /// A token that stops with this one and can also be stopped alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// Listens for SIGTERM and SIGINT from now on, and begins with the first; a second one ends the process at once
    /// with 130. What it answers must be polled, and never ends. Needs a current tokio runtime.
    ///
    /// # Errors
    /// What the system said when the handlers were installed.
    pub fn on_signal(self) -> std::io::Result<impl Future<Output = ()> + Send> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        Ok(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                if self.begun() {
                    tracing::warn!(signal = name, "asked again while stopping: ending at once");
                    std::process::exit(130);
                }
                tracing::info!(signal = name, "stopping");
                self.begin();
            }
        })
    }

    /// [`Self::on_signal`], installed when first polled.
    ///
    /// # Errors
    /// As [`Self::on_signal`].
    pub async fn signal(self) -> std::io::Result<()> {
        self.on_signal()?.await;
        Ok(())
    }
}
