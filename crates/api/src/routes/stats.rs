//! The statistics of a container.

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::header;
use axum::response::IntoResponse;
use whelk_engine::containers::{Containers, Stats};

use super::{Service, json_line};
use crate::error::{ApiError, ApiResult};
use crate::extract::Params;
use crate::version::{self, ApiVersion};
use crate::wire;

/// Returns one element, or a stream of them.
pub(super) async fn stats(
    State(containers): Service<Containers>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    let is_stream = params.flag_or("stream", true);
    let is_one_shot = version::stats_take_one_shot(version) && params.flag("one-shot");
    let line = move |stats: &Stats| -> Bytes {
        let mut shown = wire::stats(stats);
        version::downgrade_stats(version, &mut shown);
        json_line(&shown)
    };
    let body = match (is_stream, is_one_shot) {
        (true, true) => {
            containers.find(&id)?;
            return Err(ApiError::invalid(
                "cannot have stream=true and one-shot=true",
            ));
        }
        (false, true) => Body::from(line(&containers.sample(&id).await?)),
        (false, false) => Body::from(line(&containers.stats(&id).await?)),
        (true, false) => {
            let stream = containers.stats_stream(&id)?;
            Body::from_stream(futures_util::stream::unfold(
                stream,
                move |mut stream| async move {
                    let stats = stream.next().await?;
                    Some((Ok::<_, std::convert::Infallible>(line(&stats)), stream))
                },
            ))
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}
