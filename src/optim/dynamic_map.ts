// The values that codes of 8 bits stand for: dynamic quantization of Dettmers (8-Bit Approximations for Parallelism in Deep Learning),
// as bitsandbytes' create_dynamic_map makes it. Each power of ten from 1e-6 on is divided into twice as many cells as the one below.

const decades = 7;

/** 256 values, ascending: from -0.99… to 1 if signed, from 0 to 1 if not. */
export function dynamicMap(signed: boolean): Float32Array {
  const values = [0, 1];
  for (let decade = 0; decade < decades; decade++) {
    const scale = 10 ** (decade - decades + 1);
    const cells = 2 ** decade * (signed ? 1 : 2);
    for (let cell = 0; cell < cells; cell++) {
      const middle = scale * (0.1 + (0.9 * (cell + 0.5)) / cells);
      values.push(middle);
      if (signed) values.push(-middle);
    }
  }
  return Float32Array.from(values).sort();
}
