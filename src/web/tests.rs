use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

/// Serves each answer to one connection; the place is the first word of what is given to `f`.
async fn served(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let mut heard = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut asked).await.unwrap() > 0);
            }
            heard.push(String::from_utf8(asked).unwrap());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        heard
    });
    (url, server)
}

async fn body_of(answer: &str, bytes_max: u64) -> Result<Vec<u8>, WebError> {
    let (url, _server) = served(vec![answer.to_owned()]).await;
    let mut into = Vec::new();
    fetch(&url, bytes_max, &mut into).await?;
    Ok(into)
}

#[tokio::test]
async fn each_way_to_end_a_body_is_read() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
        "HTTP/1.0 200 OK\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
    ] {
        assert_eq!(body_of(answer, 100).await.unwrap(), b"hello", "{answer}");
    }
    let long = "HTTP/1.1 200 OK\r\n\r\nhello";
    assert_eq!(body_of(long, 3).await.unwrap(), b"hell", "one more shows that it is more");
}

#[tokio::test]
async fn what_is_not_the_file_is_an_error() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
    for answer in [
        "",
        "SSH-2.0-x\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\n\r\n",
        "HTTP/1.1 302 Found\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: file:/etc/passwd\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        &long,
    ] {
        assert!(body_of(answer, 100).await.is_err(), "{answer:?}");
    }
}

#[tokio::test]
async fn an_answer_may_lead_elsewhere_a_few_times() {
    let (goal, _goal) = served(vec!["HTTP/1.1 200 OK\r\n\r\nhello".to_owned()]).await;
    let elsewhere = |to: &str| format!("HTTP/1.1 307 x\r\nLocation: {to}\r\n\r\n");
    let (url, server) = served(vec![elsewhere("/b?c"), elsewhere(&goal)]).await;
    let mut into = Vec::new();
    assert_eq!(fetch(&format!("{url}/a"), 100, &mut into).await.unwrap(), 5);
    assert_eq!(into, b"hello");
    let heard = server.await.unwrap();
    assert!(heard[0].starts_with("GET /a HTTP/1.1\r\n"), "{heard:?}");
    assert!(heard[1].starts_with("GET /b?c HTTP/1.1\r\n"), "{heard:?}");

    let (url, _server) = served(vec![elsewhere("/round"); REDIRECTS_MAX + 1]).await;
    let round = fetch(&url, 100, &mut Vec::new()).await;
    assert!(matches!(round, Err(WebError::Redirects)), "{round:?}");
}

#[tokio::test]
async fn nobody_leads_out_of_the_encryption() {
    let (url, _server) =
        served(vec!["HTTP/1.1 302 x\r\nLocation: http://h/\r\n\r\n".to_owned()]).await;
    let answer = get(&url.parse().unwrap()).await.unwrap();
    let from = "https://h/".parse().unwrap();
    assert!(matches!(answer.leads_to(&from), Err(WebError::LedAstray(_))));
}

#[tokio::test]
async fn a_body_that_is_too_long_is_none() {
    let answer = "HTTP/1.1 500 x\r\nContent-Length: 5\r\n\r\nhello".to_owned();
    let (url, _server) = served(vec![answer; 2]).await;
    let address: Address = url.parse().unwrap();
    let answer = get(&address).await.unwrap();
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.bytes(5).await.unwrap(), b"hello");
    let long = get(&address).await.unwrap().bytes(4).await;
    assert!(matches!(long, Err(WebError::TooLong(4))), "{long:?}");
}
