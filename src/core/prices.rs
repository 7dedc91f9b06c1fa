//! What a call costs.

use crate::core::chat::Usage;
use crate::core::wire::Prices;

/// The cost of a call in thousand-millionths of a currency unit, rounded to the nearest.
///
/// Tokens from the provider's cache cost `cached`, and those that were written to it `cache_written`; or as much as
/// others where that is 0.
pub fn cost_nanos(usage: &Usage, prices: &Prices) -> u64 {
    let from_cache = usage.cached.min(usage.input);
    let written = usage.cache_written.min(usage.input - from_cache);
    let or_input = |price: u64| if price == 0 { prices.input } else { price };
    let of = |tokens: u64, price: u64| u128::from(tokens) * u128::from(price);
    let sum = of(usage.input - from_cache - written, prices.input)
        .saturating_add(of(from_cache, or_input(prices.cached)))
        .saturating_add(of(written, or_input(prices.cache_written)))
        .saturating_add(of(usage.output, prices.output));
    // Millionths of a unit for a million tokens are a thousandth of a thousand-millionth for one.
    u64::try_from(sum.saturating_add(500) / 1000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn usage(input: u64, cached: u64, output: u64) -> Usage {
        Usage { input, cached, output, ..Usage::default() }
    }

    #[test]
    fn a_million_tokens_cost_the_price() {
        // 2.50, 1.25 and 10 units for a million tokens.
        let prices = Prices { input: 2_500_000, cached: 1_250_000, cache_written: 0, output: 10_000_000 };
        assert_eq!(cost_nanos(&usage(1_000_000, 0, 0), &prices), 2_500_000_000);
        assert_eq!(cost_nanos(&usage(1_000_000, 1_000_000, 0), &prices), 1_250_000_000);
        assert_eq!(cost_nanos(&usage(0, 0, 1_000_000), &prices), 10_000_000_000);
        assert_eq!(cost_nanos(&usage(1000, 200, 10), &prices), 2_000_000 + 250_000 + 100_000);
    }

    #[test]
    fn cached_tokens_without_a_price_cost_as_others() {
        let prices = Prices { input: 1_000_000, cached: 0, cache_written: 0, output: 0 };
        assert_eq!(cost_nanos(&usage(10, 4, 0), &prices), cost_nanos(&usage(10, 0, 0), &prices));
    }

    #[test]
    fn tokens_written_to_the_cache_have_a_price_of_their_own() {
        let prices = Prices { input: 4_000_000, cached: 400_000, cache_written: 5_000_000, output: 0 };
        let written = Usage { cache_written: 30, ..usage(100, 20, 0) };
        assert_eq!(cost_nanos(&written, &prices), 50 * 4000 + 20 * 400 + 30 * 5000);
        let plain = Prices { cache_written: 0, ..prices };
        assert_eq!(cost_nanos(&written, &plain), cost_nanos(&usage(100, 20, 0), &plain));
    }

    #[test]
    fn a_fraction_is_rounded_to_the_nearest() {
        let prices = Prices { input: 499, cached: 0, cache_written: 0, output: 1 };
        assert_eq!(cost_nanos(&usage(1, 0, 0), &prices), 0);
        assert_eq!(cost_nanos(&usage(1, 0, 1), &prices), 1);
    }

    proptest! {
        #[test]
        fn no_usage_overflows_and_more_never_costs_less(
            input: u64, cached: u64, cache_written: u64, output in 0..u64::MAX, price: [u64; 4],
        ) {
            let prices = Prices { input: price[0], cached: price[1], cache_written: price[2], output: price[3] };
            let used = Usage { cache_written, ..usage(input, cached, output) };
            let more = Usage { output: output + 1, ..used };
            prop_assert!(cost_nanos(&more, &prices) >= cost_nanos(&used, &prices));
        }
    }
}
