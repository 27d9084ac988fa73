//! Requests for devices: the values of `--gpus`, and devices that `--device` names.

use std::collections::BTreeMap;

use whelk_api_types::DeviceRequest;

use super::mounts::fields;
use super::named;
use crate::commands::arguments::key_values;
use crate::{Failure, Outcome};

/// Returns the requests; `None` without any.
pub(super) fn requests(gpus: &[String], names: Vec<String>) -> Outcome<Option<Vec<DeviceRequest>>> {
    let gpus = gpus.iter().map(|value| {
        let request = parse(value).map_err(Failure::new);
        named(request, value, "--gpus")
    });
    let mut requests: Vec<DeviceRequest> = gpus.collect::<Outcome<_>>()?;
    if !names.is_empty() {
        requests.push(DeviceRequest {
            driver: "cdi".into(),
            device_ids: Some(names),
            ..DeviceRequest::default()
        });
    }
    Ok(Some(requests).filter(|requests| !requests.is_empty()))
}

/// Parses fields such as `all`, `2` or `"device=0,1",driver=nvidia,capabilities=utility`.
fn parse(value: &str) -> Result<DeviceRequest, String> {
    let mut request = DeviceRequest {
        options: Some(BTreeMap::new()),
        capabilities: Some(vec![vec!["gpu".into()]]),
        ..DeviceRequest::default()
    };
    let mut seen = Vec::new();
    for field in fields(value)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field.as_str(), None),
        };
        if seen.iter().any(|other| other == key) {
            return Err(format!(
                "gpu request key '{key}' can be specified only once"
            ));
        }
        seen.push(key.to_owned());
        let list = |value: &str| value.split(',').map(str::to_owned).collect::<Vec<_>>();
        match (key, value) {
            (count, None) => {
                seen.push("count".into());
                request.count = parse_count(count)?;
            }
            ("driver", Some(driver)) => request.driver = driver.to_owned(),
            ("count", Some(count)) => request.count = parse_count(count)?,
            ("device", Some(ids)) => request.device_ids = Some(list(ids)),
            ("capabilities", Some(capabilities)) => {
                let mut capabilities = list(capabilities);
                capabilities.push("gpu".into());
                request.capabilities = Some(vec![capabilities]);
            }
            ("options", Some(options)) => {
                let options = fields(options)
                    .map_err(|error| format!("failed to read gpu options: {error}"))?;
                request.options = Some(key_values(&options));
            }
            (key, Some(_)) => return Err(format!("unexpected key '{key}' in '{field}'")),
        }
    }
    if request.device_ids.is_none() && !seen.iter().any(|key| key == "count") {
        request.count = 1;
    }
    Ok(request)
}

fn parse_count(text: &str) -> Result<i64, String> {
    if text == "all" {
        return Ok(-1);
    }
    text.parse().map_err(|error: std::num::ParseIntError| {
        let reason = match error.kind() {
            std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                "value out of range"
            }
            _ => "invalid syntax",
        };
        format!("invalid count ({text}): value must be either \"all\" or an integer: {reason}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_requested_by_number_or_id() {
        let request = |count: i64, ids: Option<&[&str]>, capabilities: &[&str]| DeviceRequest {
            count,
            device_ids: ids.map(|ids| ids.iter().map(|&id| id.to_owned()).collect()),
            capabilities: Some(vec![
                capabilities.iter().map(|&name| name.to_owned()).collect(),
            ]),
            options: Some(BTreeMap::new()),
            ..DeviceRequest::default()
        };
        assert_eq!(parse("all").unwrap(), request(-1, None, &["gpu"]));
        assert_eq!(parse("2").unwrap(), request(2, None, &["gpu"]));
        assert_eq!(
            parse("capabilities=utility").unwrap(),
            request(1, None, &["utility", "gpu"])
        );
        let wanted = DeviceRequest {
            driver: "nvidia".into(),
            options: Some([("a".to_owned(), "b".to_owned())].into()),
            ..request(0, Some(&["0", "GPU-x"]), &["gpu"])
        };
        assert_eq!(
            parse("\"device=0,GPU-x\",driver=nvidia,options=a=b").unwrap(),
            wanted
        );
        for (value, expected) in [
            (
                "x",
                "invalid count (x): value must be either \"all\" or an integer: invalid syntax",
            ),
            ("all,1", "can be specified only once"),
            (
                "count=1,count=2",
                "gpu request key 'count' can be specified only once",
            ),
            ("other=1", "unexpected key 'other' in 'other=1'"),
        ] {
            // Two numbers are two keys in Docker, and the last one counts.
            match parse(value) {
                Err(error) => assert!(error.contains(expected), "{error}"),
                Ok(request) => assert_eq!((value, request.count), ("all,1", 1)),
            }
        }
        assert_eq!(requests(&[], Vec::new()).unwrap(), None);
        let named = requests(&[], vec!["v/c=d".into()]).unwrap().unwrap();
        assert_eq!((named[0].driver.as_str(), named[0].count), ("cdi", 0));
    }
}
