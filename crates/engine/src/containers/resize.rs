//! Resizing a container's terminal.

use whelk_shim::protocol::Request;

use super::Containers;
use crate::error::Result;
use crate::shims;

impl Containers {
    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// Returns an error if it does not run.
    pub async fn resize(&self, name: &str, height: u16, width: u16) -> Result<()> {
        let container = self.find(name)?;
        container.wait_for_start().await;
        container.running_pid()?;
        let request = Request::Resize {
            exec: None,
            height,
            width,
        };
        let (reply, _) = container.workload.request(&request).await?;
        shims::expect_done(reply, "cannot resize the container's terminal")?;
        self.publish(
            &container,
            "resize",
            &[("height", height.to_string()), ("width", width.to_string())],
        );
        Ok(())
    }
}
