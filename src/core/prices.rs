//! What a call costs.

use crate::core::chat::Usage;
use crate::core::wire::Prices;

/// The cost of a call in thousand-millionths of a currency unit, rounded to the nearest.
///
/// Tokens from the provider's cache cost `cached`, or as much as others where that is 0.
pub fn cost_nanos(usage: &Usage, prices: &Prices) -> u64 {
    let from_cache = usage.cached.min(usage.input);
    let cached = if prices.cached == 0 { prices.input } else { prices.cached };
    let of = |tokens: u64, price: u64| u128::from(tokens) * u128::from(price);
    let sum = of(usage.input - from_cache, prices.input)
        .saturating_add(of(from_cache, cached))
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
        let prices = Prices { input: 2_500_000, cached: 1_250_000, output: 10_000_000 };
        assert_eq!(cost_nanos(&usage(1_000_000, 0, 0), &prices), 2_500_000_000);
        assert_eq!(cost_nanos(&usage(1_000_000, 1_000_000, 0), &prices), 1_250_000_000);
        assert_eq!(cost_nanos(&usage(0, 0, 1_000_000), &prices), 10_000_000_000);
        assert_eq!(cost_nanos(&usage(1000, 200, 10), &prices), 2_000_000 + 250_000 + 100_000);
    }

    #[test]
    fn cached_tokens_without_a_price_cost_as_others() {
        let prices = Prices { input: 1_000_000, cached: 0, output: 0 };
        assert_eq!(cost_nanos(&usage(10, 4, 0), &prices), cost_nanos(&usage(10, 0, 0), &prices));
    }

    #[test]
    fn a_fraction_is_rounded_to_the_nearest() {
        let prices = Prices { input: 499, cached: 0, output: 1 };
        assert_eq!(cost_nanos(&usage(1, 0, 0), &prices), 0);
        assert_eq!(cost_nanos(&usage(1, 0, 1), &prices), 1);
    }

    proptest! {
        #[test]
        fn no_usage_overflows_and_more_never_costs_less(
            input: u64, cached: u64, output in 0..u64::MAX, price: u64, cache_price: u64, out_price: u64,
        ) {
            let prices = Prices { input: price, cached: cache_price, output: out_price };
            let cost = cost_nanos(&usage(input, cached, output), &prices);
            prop_assert!(cost_nanos(&usage(input, cached, output + 1), &prices) >= cost);
        }
    }
}
