// Element types: names as users write them, numbers as the addon has them (cpp/core/dtype.h), names as safetensors has them.

export type DType = 'float32' | 'bfloat16' | 'float16' | 'int64' | 'int32' | 'uint8';
export type FloatDType = 'float32' | 'bfloat16' | 'float16';

const names: readonly DType[] = ['float32', 'bfloat16', 'float16', 'int64', 'int32', 'uint8'];
const sizes: Record<DType, number> = { float32: 4, bfloat16: 2, float16: 2, int64: 8, int32: 4, uint8: 1 };
const safetensorsNames: Record<DType, string> = {
  float32: 'F32',
  bfloat16: 'BF16',
  float16: 'F16',
  int64: 'I64',
  int32: 'I32',
  uint8: 'U8',
};

/** The number that stands for `dtype` in native calls. */
export function dtypeNumber(dtype: DType): number {
  return names.indexOf(dtype);
}

export function dtypeFromNumber(value: number): DType {
  return names[value]!;
}

/** Bytes of one element. */
export function dtypeSize(dtype: DType): number {
  return sizes[dtype];
}

export function isFloating(dtype: DType): dtype is FloatDType {
  return dtype === 'float32' || dtype === 'bfloat16' || dtype === 'float16';
}

/** The name in a safetensors header, e.g. `BF16`. */
export function safetensorsName(dtype: DType): string {
  return safetensorsNames[dtype];
}

/** The dtype of a safetensors name; undefined for those that rankzero does not compute with (F64, F8_E4M3, …). */
export function dtypeFromSafetensors(name: string): DType | undefined {
  return names.find((dtype) => safetensorsNames[dtype] === name);
}

/** Accepts `float32`, `torch.float32`, as config.json has them. */
export function parseDType(text: string): DType | undefined {
  const name = text.replace(/^torch\./, '');
  return names.find((dtype) => dtype === name);
}
