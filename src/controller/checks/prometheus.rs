//! Checks by a query of one number, to any server that speaks the HTTP interface of Prometheus.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::{ANSWER_WITHIN, Found};
use crate::domain::rollout::Measure;
use crate::domain::text::printable;
use crate::web::{self, Address, InvalidAddress};

/// How long an answer may be, in bytes: one number is asked for.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// What is asked, and which answers are good.
#[derive(Clone, Debug)]
pub(super) struct Query {
    address: Address,
    min: Option<f64>,
    max: Option<f64>,
}

impl Query {
    /// # Errors
    /// The server's address is none.
    pub(super) fn new(
        url: &str,
        query: &str,
        bounds: (Option<&str>, Option<&str>),
    ) -> Result<Self, InvalidAddress> {
        let query = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let url = format!("{}/api/v1/query?query={query}", url.trim_end_matches('/'));
        let number = |bound: Option<&str>| bound?.parse().ok();
        Ok(Self { address: url.parse()?, min: number(bounds.0), max: number(bounds.1) })
    }

    /// Asks, and judges the number.
    pub(super) async fn measure(&self) -> Found {
        let asked = async { web::get(&self.address).await?.bytes(ANSWER_BYTES_MAX).await };
        match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(Ok(answer)) => self.judge(&answer),
            Ok(Err(error)) => (Measure::Error, error.to_string()),
            Err(_) => (Measure::Error, format!("no answer within {}s", ANSWER_WITHIN.as_secs())),
        }
    }

    fn judge(&self, answer: &[u8]) -> Found {
        match value(answer) {
            Err(why) => (Measure::Error, why),
            Ok(None) => (Measure::Inconclusive, "no data".to_owned()),
            Ok(Some(value)) if value.is_nan() => (Measure::Inconclusive, "NaN".to_owned()),
            Ok(Some(value)) => {
                let low = self.min.filter(|min| value < *min).map(|min| format!("less than {min}"));
                let high = self.max.filter(|max| value > *max);
                match low.or(high.map(|max| format!("more than {max}"))) {
                    Some(why) => (Measure::Bad, format!("{value}, {why}")),
                    None => (Measure::Good, value.to_string()),
                }
            }
        }
    }
}

/// An answer, as <https://prometheus.io/docs/prometheus/latest/querying/api/> has it.
#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Scalar((f64, String)),
    Vector(Vec<Series>),
}

#[derive(Deserialize)]
struct Series {
    value: (f64, String),
}

/// Reads the one number of an answer; `None` when there is no data.
fn value(answer: &[u8]) -> Result<Option<f64>, String> {
    let answer: Answer = serde_json::from_slice(answer)
        .map_err(|error| format!("the answer is not that of a query for one number: {error}"))?;
    let text = match answer.data {
        Some(_) | None if answer.status != "success" => {
            return Err(printable(&answer.error).chars().take(200).collect());
        }
        None => return Err("the answer holds no data".to_owned()),
        Some(Data::Scalar((_, text))) => text,
        Some(Data::Vector(series)) => match &series[..] {
            [] => return Ok(None),
            [one] => one.value.1.clone(),
            several => {
                let many = several.len();
                return Err(format!("the query gives {many} numbers; make it one, as with sum()"));
            }
        },
    };
    // It writes `+Inf` and `NaN`, which are read.
    text.parse().map(Some).map_err(|_| "its value is no number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(data: &str) -> (Measure, String) {
        let query = Query::new("http://p", "up", (Some("0.1"), Some("0.5"))).unwrap();
        query.judge(format!(r#"{{"status":"success","data":{data}}}"#).as_bytes())
    }

    fn vector(values: &[&str]) -> String {
        let series =
            values.iter().map(|it| format!(r#"{{"metric":{{"a":"b"}},"value":[1.5,"{it}"]}}"#));
        let series: Vec<_> = series.collect();
        format!(r#"{{"resultType":"vector","result":[{}]}}"#, series.join(","))
    }

    #[test]
    fn a_number_within_its_bounds_is_good_and_no_number_is_no_verdict() {
        for (value, measure, said) in [
            ("0.5", Measure::Good, "0.5"),
            ("0.1", Measure::Good, "0.1"),
            ("0.51", Measure::Bad, "0.51, more than 0.5"),
            ("0", Measure::Bad, "0, less than 0.1"),
            ("+Inf", Measure::Bad, "inf, more than 0.5"),
            ("NaN", Measure::Inconclusive, "NaN"),
            ("x", Measure::Error, "its value is no number"),
        ] {
            assert_eq!(judge(&vector(&[value])), (measure, said.to_owned()));
        }
        let scalar = r#"{"resultType":"scalar","result":[1,"0.25"]}"#;
        assert_eq!(judge(scalar), (Measure::Good, "0.25".to_owned()));
        assert_eq!(judge(&vector(&[])), (Measure::Inconclusive, "no data".to_owned()));
        assert_eq!(judge(&vector(&["1", "2"])).0, Measure::Error);
    }

    #[test]
    fn what_is_no_answer_to_a_query_is_no_measurement() {
        let query = Query::new("http://p", "up", (None, None)).unwrap();
        for answer in ["", "[]", r#"{"status":"success"}"#, "<html>"] {
            assert_eq!(query.judge(answer.as_bytes()).0, Measure::Error, "{answer}");
        }
        let refused = br#"{"status":"error","errorType":"bad_data","error":"parse error"}"#;
        assert_eq!(query.judge(refused), (Measure::Error, "parse error".to_owned()));
    }

    #[test]
    fn a_query_is_a_part_of_an_address() {
        let query = Query::new("http://p:9090/", r#"a{b="c d"}"#, (None, None)).unwrap();
        assert_eq!(query.address.path(), "/api/v1/query?query=a%7Bb%3D%22c%20d%22%7D");
        assert!(Query::new("prom", "up", (None, None)).is_err());
    }
}
