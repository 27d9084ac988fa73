//! Connections to ssh agents of a client (`moby.sshforward.v1.SSH`).

use hyper::header::HeaderMap;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::grpc::{Code, Result, Status};
use crate::pb::session::CheckAgentRequest;
use crate::pb::{BytesMessage, Unused};
use crate::session::{Session, append};

/// The methods of clients that are called.
pub const CHECK: &str = "moby.sshforward.v1.SSH/CheckAgent";
pub const FORWARD: &str = "moby.sshforward.v1.SSH/ForwardAgent";

/// Maximum number of bytes of a message.
const PIECE: usize = 32 << 10;

impl Session {
    /// Returns whether the client has an agent, or keys, of this id.
    ///
    /// # Errors
    /// Returns the client's error if it forwards some, but not this one.
    pub async fn has_agent(&self, id: &str) -> Result<bool> {
        if !self.has(CHECK) || !self.has(FORWARD) {
            return Ok(false);
        }
        let request = CheckAgentRequest { id: id.to_owned() };
        match self.channel().unary::<Unused>(CHECK, &request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code == Code::Unimplemented => Ok(false),
            Err(status) => Err(status),
        }
    }

    /// Connects a stream to an agent, until either side ends.
    ///
    /// # Errors
    /// Returns an error if the client ends the call with one.
    pub async fn agent(&self, id: &str, stream: impl AsyncRead + AsyncWrite) -> Result<()> {
        self.needs(FORWARD)?;
        let mut metadata = HeaderMap::new();
        append(&mut metadata, "buildkit.ssh.id", &[id.to_owned()]);
        let mut call = self.channel().stream(FORWARD, metadata)?;
        let requests = call.requests.clone();
        call.requests.close();
        let (mut input, mut output) = tokio::io::split(stream);
        let sent = async move {
            let mut buffer = bytes::BytesMut::with_capacity(PIECE);
            while let Ok(1..) = input.read_buf(&mut buffer).await {
                let data = buffer.split().freeze();
                if requests.send(&BytesMessage { data }).await.is_err() {
                    break;
                }
                buffer.reserve(PIECE);
            }
            // Dropped: the client is told that nothing follows.
            drop(requests);
            std::future::pending::<()>().await;
        };
        let received = async {
            while let Some(BytesMessage { data }) = call.next().await? {
                if output.write_all(&data).await.is_err() {
                    break;
                }
            }
            let _ = output.shutdown().await;
            Ok::<_, Status>(())
        };
        tokio::select! {
            () = sent => Ok(()),
            result = received => result,
        }
    }
}
