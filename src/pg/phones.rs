//! Phone numbers in one form, E.164, whoever wrote them down and how.

use crate::core::error::Error;
use crate::pg::report::Reported;
use pgrx::prelude::*;
use phonelib::PhoneNumber;

/// Bytes of a number with all that people put into it, at most.
const MOST: usize = 64;

/// `helper.normalize_phone`.
#[pg_extern(sql = false, immutable, parallel_safe)]
fn normalize_phone(phone: Option<&str>, region: Option<&str>) -> Reported<Option<String>> {
    if let Some(code) = region.filter(|code| phonelib::country_by_code(code).is_none()) {
        return Err(Error::bad_argument(format!("region \"{code}\" is not known"))
            .hint("Use an ISO 3166 code of two upper-case letters, such as ID.")
            .into());
    }
    let number = phone.filter(|phone| phone.len() <= MOST).and_then(|phone| match region {
        Some(region) => PhoneNumber::parse_with_country(phone, region),
        None => PhoneNumber::parse(phone),
    });
    Ok(number.map(|number| number.e164().to_owned()))
}
