//! Errors as RFC 9457 tells them, with the members of `smgr.error.v1` beside: the same codes as everywhere.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use crate::cli::error::CliError;
use crate::cli::json::error::{ErrorDocument, error_json};
use crate::controller::AskError;
use crate::domain::code::{Code, ExitCode};
use crate::domain::text::printable;
use crate::head::authority::Refusal;

/// Why a request was not carried out. Nothing changed.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    status: StatusCode,
    error: CliError,
}

impl Problem {
    /// Returns a problem with the status that its code has.
    pub(super) fn new(code: Code, what: impl Into<String>) -> Self {
        CliError::new(code, what).into()
    }

    /// Returns its code.
    pub(super) fn code(&self) -> Code {
        self.error.code
    }

    /// Says what can be done.
    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.error = self.error.hint(hint);
        self
    }

    /// Gives it another status than its code has.
    #[must_use]
    pub(super) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    fn document(&self) -> ProblemDocument {
        ProblemDocument {
            r#type: format!("urn:smgr:error:{}", self.error.code),
            title: self.error.code.title(),
            status: self.status.as_u16(),
            detail: self.error.what.clone(),
            error: error_json(&self.error),
        }
    }
}

/// A problem as RFC 9457 has it, with the members of `smgr.error.v1`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(rename = "Problem"))]
pub(super) struct ProblemDocument {
    /// `urn:smgr:error:` and the code.
    r#type: String,
    /// What the code means.
    title: &'static str,
    /// That of the answer.
    status: u16,
    /// What happened.
    detail: String,
    #[serde(flatten)]
    error: ErrorDocument,
}

impl From<CliError> for Problem {
    fn from(mut error: CliError) -> Self {
        // It may quote the caller, and somebody's terminal shows it.
        error.what = printable(&error.what).into_owned();
        Self { status: status_of(error.code), error }
    }
}

impl From<AskError> for Problem {
    fn from(error: AskError) -> Self {
        Self::new(Code::BUSY, error.to_string()).status(StatusCode::SERVICE_UNAVAILABLE)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code, refusal.why)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let kind = (header::CONTENT_TYPE, "application/problem+json");
        let mut response =
            (self.status, [kind], json!(self.document()).to_string()).into_response();
        tell_exit(&mut response, self.error.exit().number());
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = axum::http::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// Says in a header how a command would end, so that a shell needs no JSON for it.
pub(super) fn tell_exit(response: &mut Response, exit_code: u8) {
    let name = header::HeaderName::from_static("smgr-exit-code");
    response.headers_mut().insert(name, u16::from(exit_code).into());
}

/// Returns the status that a code has.
pub(super) fn status_of(code: Code) -> StatusCode {
    match code {
        Code::BAD_TOKEN => StatusCode::UNAUTHORIZED,
        Code::NOT_YET => StatusCode::NOT_IMPLEMENTED,
        Code::TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        Code::BAD_SHAPE | Code::UNKNOWN_TYPE | Code::BAD_PAYLOAD => StatusCode::BAD_REQUEST,
        Code::RATE_LIMITED | Code::BUSY => StatusCode::TOO_MANY_REQUESTS,
        Code::REPLAYED => StatusCode::UNPROCESSABLE_ENTITY,
        _ => match code.exit() {
            ExitCode::Usage => StatusCode::BAD_REQUEST,
            ExitCode::NotFound => StatusCode::NOT_FOUND,
            ExitCode::Unreachable | ExitCode::History => StatusCode::SERVICE_UNAVAILABLE,
            ExitCode::Refused => StatusCode::CONFLICT,
            ExitCode::NotAuthorised => StatusCode::FORBIDDEN,
            ExitCode::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            ExitCode::Done
            | ExitCode::Internal
            | ExitCode::NotReady
            | ExitCode::RolledBack
            | ExitCode::Mixed
            | ExitCode::RollbackFailed
            | ExitCode::Aborted
            | ExitCode::Waits
            | ExitCode::ActionFailed
            | ExitCode::Unknown
            | ExitCode::Changes
            | ExitCode::StillRunning
            | ExitCode::Interrupted
            | ExitCode::Terminated => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::code::TABLE;

    #[test]
    fn a_problem_has_what_the_rfc_names_and_what_every_error_of_smgr_has() {
        let problem = Problem::new(Code::NOT_GRANTED, "`ci` may not stop `web` on `n1`");
        let document = json!(problem.document());
        assert_eq!(document["type"], "urn:smgr:error:E0323");
        assert_eq!((&document["status"], &document["exit_code"]), (&json!(403), &json!(7)));
        assert_eq!(
            (&document["schema"], &document["code"]),
            (&json!("smgr.error.v1"), &json!("E0323"))
        );
        assert_eq!(document["detail"], document["what"]);
    }

    #[test]
    fn no_error_has_the_status_of_a_success() {
        assert!(TABLE.iter().all(|entry| status_of(entry.code).as_u16() >= 400));
    }
}
