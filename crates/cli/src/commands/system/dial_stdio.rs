//! The `system dial-stdio` command, which `ssh://` hosts run.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::Client;
use crate::output::write_out;
use crate::{Failure, Outcome, plain};

/// Size of the pieces that are copied, in bytes.
const PIECE: usize = 64 << 10;

/// Connects standard input and output to the engine. The end of the input is passed on; the command
/// ends with the engine's output.
pub(super) async fn dial_stdio(client: &Client) -> Outcome {
    let connection = client.connect().await.map_err(|error| {
        let text = client.unreachable(&error);
        Failure::new(format!("failed to open the raw stream connection: {text}"))
    })?;
    let (mut from_engine, mut to_engine) = tokio::io::split(connection);
    let input = tokio::spawn(async move {
        let mut stdin = tokio::io::stdin();
        // An engine that does not read any more ends the output as well.
        let _ = tokio::io::copy(&mut stdin, &mut to_engine).await;
        let _ = to_engine.shutdown().await;
    });
    let mut piece = vec![0; PIECE];
    loop {
        let count = from_engine.read(&mut piece).await.map_err(|error| {
            Failure::new(format!("read the engine's output: {}", plain(&error)))
        })?;
        if count == 0 {
            input.abort();
            return Ok(0);
        }
        write_out(&piece[..count])?;
    }
}
