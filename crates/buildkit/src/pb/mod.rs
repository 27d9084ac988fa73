//! The messages of BuildKit's services, as of v0.32, as far as they are used.
//!
//! The messages of operations are those of [`whelk_llb::pb`]. What is only decoded to be refused is [`Unused`].

pub mod content;
pub mod control;
pub mod files;
pub mod gateway;
pub mod policy;
pub mod session;

pub use prost::Message;

/// A message that is not looked into.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Unused {}

/// `google.protobuf.Timestamp`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Message)]
pub struct Timestamp {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    /// Returns nanoseconds since 1970.
    pub fn to_nanos(self) -> i64 {
        self.seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(self.nanos.into())
    }

    /// From nanoseconds since 1970.
    pub fn from_nanos(nanos: i64) -> Self {
        const SECOND: i64 = 1_000_000_000;
        Self {
            seconds: nanos.div_euclid(SECOND),
            nanos: i32::try_from(nanos.rem_euclid(SECOND)).unwrap_or(0),
        }
    }
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// A piece of a stream of bytes; several services have a message of this form.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct BytesMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub data: bytes::Bytes,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    pub status: i32,
}

impl HealthCheckResponse {
    pub const SERVING: i32 = 1;
}
