//! What serde asks of a [`Reader`].

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::{NEVER, ReadError, Reader};

/// Reads by a method of the reader and gives what it read to a method of the visitor.
macro_rules! one {
    ($($method:ident)* => $read:ident, $visit:ident, $what:literal) => {
        $(
            #[inline]
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
                visitor.$visit(self.$read().ok_or(ReadError::Expected($what))?)
            }
        )*
    };
}

macro_rules! as_another {
    ($($($method:ident)* => $other:ident,)*) => {
        $($(
            #[inline]
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
                self.$other(visitor)
            }
        )*)*
    };
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.rest.first().copied().unwrap_or(NEVER) {
            0x80..=0x8f | 0xde | 0xdf => self.deserialize_map(visitor),
            0x90..=0x9f | 0xdc | 0xdd => self.deserialize_seq(visitor),
            0xa0..=0xbf | 0xd9..=0xdb => self.deserialize_str(visitor),
            0xc4..=0xc6 => self.deserialize_bytes(visitor),
            0xc0 => self.deserialize_unit(visitor),
            0xc2 | 0xc3 => self.deserialize_bool(visitor),
            0xca | 0xcb => self.deserialize_f64(visitor),
            0x00..=0x7f | 0xcc..=0xcf | 0xd0..=0xd3 | 0xe0..=0xff => self.deserialize_u64(visitor),
            0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => Err(ReadError::Expected("a value")),
        }
    }

    one!(deserialize_bool => bool, visit_bool, "true or false");
    one!(deserialize_bytes deserialize_byte_buf => bin, visit_borrowed_bytes, "bytes");

    /// Reads a number in any of its forms; which range it has to have is the visitor's.
    #[inline]
    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let expected = ReadError::Expected("a whole number");
        match self.rest.first() {
            Some(0xd0..=0xd3 | 0xe0..=0xff) => visitor.visit_i64(self.int().ok_or(expected)?),
            _ => visitor.visit_u64(self.uint().ok_or(expected)?),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let cut = ReadError::Expected("a number");
        match self.rest.first() {
            Some(0xca) => {
                self.byte();
                visitor.visit_f32(self.array().map(f32::from_be_bytes).ok_or(cut)?)
            }
            Some(0xcb) => {
                self.byte();
                visitor.visit_f64(self.array().map(f64::from_be_bytes).ok_or(cut)?)
            }
            _ => self.deserialize_u64(visitor),
        }
    }

    #[inline]
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let bytes = self.text().ok_or(ReadError::Expected("a text"))?;
        visitor.visit_borrowed_str(std::str::from_utf8(bytes).map_err(|_| ReadError::Text)?)
    }

    /// Reads the name of a field or variant, which its type compares by byte.
    #[inline]
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_borrowed_bytes(self.text().ok_or(ReadError::Expected("a name"))?)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.nil() {
            Some(()) => visitor.visit_none(),
            None => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.nil().ok_or(ReadError::Expected("nil"))?;
        visitor.visit_unit()
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let len = self.array_len().ok_or(ReadError::Expected("an array"))?;
        self.parts(len, visitor)
    }

    #[inline]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let len = self.map_len().ok_or(ReadError::Expected("a map"))?;
        self.entries(len, visitor)
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deserialize_unit(visitor)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    /// Reads a variant: its name alone, or a map of its name and what it holds.
    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match self.rest.first() {
            Some(0xa0..=0xbf | 0xd9..=0xdb) => {
                visitor.visit_enum(Variant { reader: self, is_alone: true })
            }
            _ if self.map_len() == Some(1) => {
                self.inside(|reader| visitor.visit_enum(Variant { reader, is_alone: false }))
            }
            _ => Err(ReadError::Expected("a variant")),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.skip()?;
        visitor.visit_unit()
    }

    as_another! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 => deserialize_u64,
        deserialize_u8 deserialize_u16 deserialize_u32 => deserialize_u64,
        deserialize_f32 => deserialize_f64,
        deserialize_char deserialize_string => deserialize_str,
    }
}

impl<'de> Reader<'de> {
    /// Gives all parts of an array to the visitor, or all entries of a map.
    #[inline]
    fn parts<V: Visitor<'de>>(&mut self, len: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.inside(|reader| {
            let mut parts = Parts { reader, left: len };
            let value = visitor.visit_seq(&mut parts)?;
            parts.none_left().map(|()| value)
        })
    }

    #[inline]
    fn entries<V: Visitor<'de>>(&mut self, len: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.inside(|reader| {
            let mut entries = Parts { reader, left: len };
            let value = visitor.visit_map(&mut entries)?;
            entries.none_left().map(|()| value)
        })
    }
}

/// The rest of an array or a map.
struct Parts<'r, 'de> {
    reader: &'r mut Reader<'de>,
    left: usize,
}

impl Parts<'_, '_> {
    fn none_left(&self) -> Result<(), ReadError> {
        if self.left == 0 { Ok(()) } else { Err(ReadError::Expected("fewer parts")) }
    }

    /// Returns how many parts to make room for: no more than the bytes can hold, whatever they claim.
    fn hint(&self) -> usize {
        self.left.min(self.reader.rest.len())
    }
}

impl<'de> SeqAccess<'de> for &mut Parts<'_, 'de> {
    type Error = ReadError;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ReadError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.hint())
    }
}

impl<'de> MapAccess<'de> for &mut Parts<'_, 'de> {
    type Error = ReadError;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, ReadError> {
        SeqAccess::next_element_seed(self, seed)
    }

    #[inline]
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.hint())
    }
}

/// A variant, of which the name comes next.
struct Variant<'r, 'de> {
    reader: &'r mut Reader<'de>,
    is_alone: bool,
}

impl<'r, 'de> Variant<'r, 'de> {
    /// Goes on to what the variant holds.
    fn held(self) -> Result<&'r mut Reader<'de>, ReadError> {
        if self.is_alone {
            Err(ReadError::Expected("a variant with a value"))
        } else {
            Ok(self.reader)
        }
    }
}

impl<'de> EnumAccess<'de> for Variant<'_, 'de> {
    type Error = ReadError;
    type Variant = Self;

    #[inline]
    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), ReadError> {
        let name = seed.deserialize(&mut *self.reader)?;
        Ok((name, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, 'de> {
    type Error = ReadError;

    #[inline]
    fn unit_variant(self) -> Result<(), ReadError> {
        match self.is_alone {
            true => Ok(()),
            false => self.reader.nil().ok_or(ReadError::Expected("nil")),
        }
    }

    #[inline]
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadError> {
        seed.deserialize(self.held()?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.held()?.deserialize_seq(visitor)
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.held()?.deserialize_map(visitor)
    }
}
