//! XXH3, 128 bits, seed 0: the checksum of redb's pages, so that they can be checked without redb.
//!
//! A plain form of the published algorithm, for 9 bytes and more: no page is shorter.

const PRIME32: [u64; 3] = [0x9E37_79B1, 0x85EB_CA77, 0xC2B2_AE3D];
const PRIME64: [u64; 5] = [
    0x9E37_79B1_85EB_CA87,
    0xC2B2_AE3D_27D4_EB4F,
    0x1656_67B1_9E37_79F9,
    0x85EB_CA77_C2B2_AE63,
    0x27D4_EB2F_1656_67C5,
];
const STRIPE: usize = 64;
const BLOCK: usize = 1024;

#[rustfmt::skip]
const SECRET: [u8; 192] = [
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
];

/// Returns the checksum of `data`; `None` below 9 bytes.
pub(crate) fn xxh3_128(data: &[u8]) -> Option<u128> {
    match data.len() {
        0..=8 => None,
        9..=16 => Some(short(data)),
        17..=128 => Some(medium(data)),
        129..=240 => Some(upper_medium(data)),
        _ => Some(long(data)),
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let word = bytes[at..].first_chunk::<8>().expect("invariant: callers stay inside");
    u64::from_le_bytes(*word)
}

fn wide(a: u64, b: u64) -> (u64, u64) {
    let product = u128::from(a) * u128::from(b);
    (product as u64, (product >> 64) as u64)
}

fn folded(a: u64, b: u64) -> u64 {
    let (low, high) = wide(a, b);
    low ^ high
}

fn avalanche(mut hash: u64) -> u64 {
    hash ^= hash >> 37;
    hash = hash.wrapping_mul(0x1656_6791_9E37_79F9);
    hash ^ (hash >> 32)
}

fn join(low: u64, high: u64) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

fn short(data: &[u8]) -> u128 {
    let len = data.len();
    let flip_low = word(&SECRET, 32) ^ word(&SECRET, 40);
    let flip_high = word(&SECRET, 48) ^ word(&SECRET, 56);
    let (first, last) = (word(data, 0), word(data, len - 8));
    let (low, high) = wide(first ^ last ^ flip_low, PRIME64[0]);
    let low = low.wrapping_add((len as u64 - 1) << 54);
    let last = last ^ flip_high;
    let spread = u64::from(last as u32).wrapping_mul(PRIME32[1] - 1);
    let high = high.wrapping_add(last.wrapping_add(spread));
    let low = low ^ high.swap_bytes();
    let (hash_low, hash_high) = wide(low, PRIME64[1]);
    let hash_high = hash_high.wrapping_add(high.wrapping_mul(PRIME64[1]));
    join(avalanche(hash_low), avalanche(hash_high))
}

/// The running pair of the middle lengths.
struct Pair {
    low: u64,
    high: u64,
}

impl Pair {
    fn new(len: usize) -> Self {
        Self { low: (len as u64).wrapping_mul(PRIME64[0]), high: 0 }
    }

    fn mix(&mut self, data: &[u8], first: usize, second: usize, secret: usize) {
        let mixed = |at: usize, secret: usize| {
            folded(
                word(data, at) ^ word(&SECRET, secret),
                word(data, at + 8) ^ word(&SECRET, secret + 8),
            )
        };
        let sum = |at: usize| word(data, at).wrapping_add(word(data, at + 8));
        self.low = self.low.wrapping_add(mixed(first, secret)) ^ sum(second);
        self.high = self.high.wrapping_add(mixed(second, secret + 16)) ^ sum(first);
    }

    fn finish(&self, len: usize) -> u128 {
        let low = self.low.wrapping_add(self.high);
        let high = self
            .low
            .wrapping_mul(PRIME64[0])
            .wrapping_add(self.high.wrapping_mul(PRIME64[3]))
            .wrapping_add((len as u64).wrapping_mul(PRIME64[1]));
        join(avalanche(low), avalanche(high).wrapping_neg())
    }
}

fn medium(data: &[u8]) -> u128 {
    let len = data.len();
    let mut pair = Pair::new(len);
    for step in (0..(len - 1) / 32).rev() {
        let at = 16 * (step + 1);
        if step < 3 {
            pair.mix(data, at, len - 16 - at, 32 * (step + 1));
        }
    }
    pair.mix(data, 0, len - 16, 0);
    pair.finish(len)
}

fn upper_medium(data: &[u8]) -> u128 {
    let len = data.len();
    let mut pair = Pair::new(len);
    for step in 0..4 {
        pair.mix(data, 32 * step, 32 * step + 16, 32 * step);
    }
    pair.low = avalanche(pair.low);
    pair.high = avalanche(pair.high);
    for step in 4..len / 32 {
        pair.mix(data, 32 * step, 32 * step + 16, 3 + 32 * (step - 4));
    }
    pair.mix(data, len - 16, len - 32, 136 - 17 - 16);
    pair.finish(len)
}

fn long(data: &[u8]) -> u128 {
    let len = data.len();
    let mut lanes = [
        PRIME32[2], PRIME64[0], PRIME64[1], PRIME64[2], PRIME64[3], PRIME32[1], PRIME64[4],
        PRIME32[0],
    ];
    // The last stripe is taken on its own, so it never counts as part of a block.
    let stripes = (len - 1) / STRIPE;
    for (n, stripe) in data.as_chunks::<STRIPE>().0[..stripes].iter().enumerate() {
        let in_block = n % (BLOCK / STRIPE);
        accumulate(&mut lanes, stripe, 8 * in_block);
        if in_block == BLOCK / STRIPE - 1 {
            scramble(&mut lanes);
        }
    }
    let last = data.last_chunk::<STRIPE>().expect("invariant: longer than 240 bytes");
    accumulate(&mut lanes, last, SECRET.len() - STRIPE - 7);
    let size = len as u64;
    let low = merge(&lanes, 11, size.wrapping_mul(PRIME64[0]));
    let high = merge(&lanes, SECRET.len() - STRIPE - 11, !size.wrapping_mul(PRIME64[1]));
    join(low, high)
}

fn accumulate(lanes: &mut [u64; 8], stripe: &[u8; STRIPE], secret: usize) {
    let keys = SECRET[secret..].first_chunk::<STRIPE>().expect("invariant: callers stay inside");
    let words = stripe.as_chunks::<8>().0.iter().zip(keys.as_chunks::<8>().0);
    for (i, (value, key)) in words.enumerate() {
        let value = u64::from_le_bytes(*value);
        let keyed = value ^ u64::from_le_bytes(*key);
        lanes[i ^ 1] = lanes[i ^ 1].wrapping_add(value);
        lanes[i] = lanes[i].wrapping_add((keyed & 0xFFFF_FFFF).wrapping_mul(keyed >> 32));
    }
}

fn scramble(lanes: &mut [u64; 8]) {
    for (i, lane) in lanes.iter_mut().enumerate() {
        let key = word(&SECRET, SECRET.len() - STRIPE + 8 * i);
        *lane = (*lane ^ (*lane >> 47) ^ key).wrapping_mul(PRIME32[0]);
    }
}

fn merge(lanes: &[u64; 8], secret: usize, start: u64) -> u64 {
    let pairs = lanes.as_chunks::<2>().0.iter().enumerate();
    let sum = pairs.fold(start, |sum, (i, [a, b])| {
        let at = secret + 16 * i;
        sum.wrapping_add(folded(a ^ word(&SECRET, at), b ^ word(&SECRET, at + 8)))
    });
    avalanche(sum)
}
