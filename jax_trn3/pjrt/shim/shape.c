// Element types, shapes and layouts as sizes and as text.
#include <stdio.h>

#include "shim.h"

static const struct { const char* name; int bits; } types[] = {
    [PJRT_Buffer_Type_PRED] = {"pred", 8}, [PJRT_Buffer_Type_S8] = {"s8", 8},
    [PJRT_Buffer_Type_S16] = {"s16", 16}, [PJRT_Buffer_Type_S32] = {"s32", 32},
    [PJRT_Buffer_Type_S64] = {"s64", 64}, [PJRT_Buffer_Type_U8] = {"u8", 8},
    [PJRT_Buffer_Type_U16] = {"u16", 16}, [PJRT_Buffer_Type_U32] = {"u32", 32},
    [PJRT_Buffer_Type_U64] = {"u64", 64}, [PJRT_Buffer_Type_F16] = {"f16", 16},
    [PJRT_Buffer_Type_F32] = {"f32", 32}, [PJRT_Buffer_Type_F64] = {"f64", 64},
    [PJRT_Buffer_Type_BF16] = {"bf16", 16}, [PJRT_Buffer_Type_C64] = {"c64", 64},
    [PJRT_Buffer_Type_C128] = {"c128", 128}, [PJRT_Buffer_Type_F8E5M2] = {"f8e5m2", 8},
    [PJRT_Buffer_Type_F8E4M3FN] = {"f8e4m3fn", 8},
    [PJRT_Buffer_Type_F8E4M3B11FNUZ] = {"f8e4m3b11fnuz", 8},
    [PJRT_Buffer_Type_F8E5M2FNUZ] = {"f8e5m2fnuz", 8},
    [PJRT_Buffer_Type_F8E4M3FNUZ] = {"f8e4m3fnuz", 8}, [PJRT_Buffer_Type_S4] = {"s4", 4},
    [PJRT_Buffer_Type_U4] = {"u4", 4}, [PJRT_Buffer_Type_TOKEN] = {"token", 0},
    [PJRT_Buffer_Type_S2] = {"s2", 2}, [PJRT_Buffer_Type_U2] = {"u2", 2},
    [PJRT_Buffer_Type_F8E4M3] = {"f8e4m3", 8}, [PJRT_Buffer_Type_F8E3M4] = {"f8e3m4", 8},
    [PJRT_Buffer_Type_F8E8M0FNU] = {"f8e8m0fnu", 8},
    [PJRT_Buffer_Type_F4E2M1FN] = {"f4e2m1fn", 4}, [PJRT_Buffer_Type_S1] = {"s1", 1},
    [PJRT_Buffer_Type_U1] = {"u1", 1}};

int bits_of_type(PJRT_Buffer_Type type) {
  return (unsigned)type < sizeof(types) / sizeof(types[0]) ? types[type].bits : 0;
}

int64_t bytes_of_shape(PJRT_Buffer_Type type, const int64_t* dims, size_t rank) {
  int64_t bits = bits_of_type(type);
  for (size_t i = 0; i < rank; i++)
    if (dims[i] == 0) bits = 0;  // before a product with the others can overflow
  for (size_t i = 0; i < rank; i++)
    if (dims[i] < 0 || __builtin_mul_overflow(bits, dims[i], &bits)) return -1;
  return bits / 8 + (bits % 8 != 0);
}

const char* shape_text(PJRT_Buffer_Type type, const int64_t* dims, size_t rank, char* text,
                       size_t size) {
  bool known = (unsigned)type < sizeof(types) / sizeof(types[0]) && types[type].name != NULL;
  size_t used = (size_t)snprintf(text, size, "%s[", known ? types[type].name : "?");
  for (size_t i = 0; i < rank && used < size; i++)
    used += (size_t)snprintf(text + used, size - used, i == 0 ? "%lld" : ",%lld",
                             (long long)dims[i]);
  if (used < size) snprintf(text + used, size - used, "]");
  return text;
}

char* dense_layout(const int64_t* minor_to_major, size_t rank, size_t* size) {
  char* text = malloc(rank * 21 + 3);
  if (text == NULL) return NULL;
  char* end = text;
  *end++ = '{';
  for (size_t i = 0; i < rank; i++)
    end += sprintf(end, i == 0 ? "%lld" : ",%lld",
                   minor_to_major == NULL ? (long long)(rank - 1 - i) : (long long)minor_to_major[i]);
  *end++ = '}';
  *end = 0;
  *size = (size_t)(end - text);
  return text;
}
