//! The `Retry-After` header: seconds, or an HTTP date (RFC 9110 section 10.2.3).

use std::time::{Duration, SystemTime};

use http::HeaderValue;

/// Who asks for more is asked again no sooner, and a journal can hold it.
const PATIENCE_MAX: Duration = Duration::from_secs(u32::MAX as u64);

/// How long to wait from `now`, at most `u32::MAX` seconds; nothing where the header is absent or makes no sense.
#[must_use]
pub fn read(value: Option<&HeaderValue>, now: SystemTime) -> Option<Duration> {
    let text = value?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => parse_date(text)?.duration_since(now).unwrap_or(Duration::ZERO),
    };
    Some(wait.min(PATIENCE_MAX))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the only form that servers may send.
fn parse_date(text: &str) -> Option<SystemTime> {
    let (_weekday, rest) = text.split_once(", ")?;
    let [day, month, year, time, zone]: [&str; 5] = rest.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let [hours, minutes, seconds]: [&str; 3] = time.split(':').collect::<Vec<_>>().try_into().ok()?;
    if zone != "GMT" {
        return None;
    }
    let number = |text: &str| text.parse::<u64>().ok();
    let days = days_since_epoch(number(year)?, month_number(month)?, number(day)?)?;
    let seconds = ((days * 24 + number(hours)?) * 60 + number(minutes)?) * 60 + number(seconds)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

fn month_number(name: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    MONTHS.iter().position(|month| *month == name).map(|index| index as u64 + 1)
}

/// Days of the proleptic Gregorian calendar, counted with years that begin in March.
fn days_since_epoch(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..10_000).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let leap_days = shifted_year / 4 - shifted_year / 100 + shifted_year / 400;
    (shifted_year * 365 + leap_days + day_of_year).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rstest::rstest;

    /// 2026-11-23 00:00:00 UTC.
    const NOW: u64 = 1_795_392_000;

    #[rstest]
    #[case::seconds("120", Some(120))]
    #[case::a_date_two_minutes_ahead("Mon, 23 Nov 2026 00:02:00 GMT", Some(120))]
    #[case::a_leap_day("Tue, 29 Feb 2028 00:00:00 GMT", Some(463 * 86_400))]
    #[case::a_date_gone_by("Sun, 06 Nov 1994 08:49:37 GMT", Some(0))]
    #[case::more_than_a_journal_can_hold("9007199254740993", Some(4_294_967_295))]
    #[case::the_end_of_the_calendar("Fri, 31 Dec 9999 23:59:59 GMT", Some(4_294_967_295))]
    #[case::another_zone("Mon, 23 Nov 2026 00:02:00 CET", None)]
    #[case::words("soon", None)]
    #[case::a_negative_number("-1", None)]
    fn seconds_and_dates_are_understood(#[case] value: &str, #[case] seconds: Option<u64>) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        let value = HeaderValue::from_str(value).unwrap();
        assert_eq!(read(Some(&value), now), seconds.map(Duration::from_secs));
    }
}
