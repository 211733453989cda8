// Checks an object against the schema in a CustomResourceDefinition, as an API server does that refuses unknown fields. Rules in
// CEL (x-kubernetes-validations) are not evaluated.

/** What is used of structural OpenAPI schemas. */
export interface CrdSchema {
  type?: string;
  properties?: Record<string, CrdSchema>;
  additionalProperties?: CrdSchema;
  items?: CrdSchema;
  required?: string[];
  enum?: unknown[];
  pattern?: string;
  minimum?: number;
  minLength?: number;
  maxLength?: number;
  minItems?: number;
  maxItems?: number;
  'x-kubernetes-int-or-string'?: boolean;
  'x-kubernetes-preserve-unknown-fields'?: boolean;
}

function typeOf(value: unknown): string {
  if (Array.isArray(value)) return 'array';
  return Number.isInteger(value) ? 'integer' : value === null ? 'null' : typeof value;
}

/** What is wrong with `value`, one line for each problem. */
export function crdProblems(value: unknown, schema: CrdSchema, path = ''): string[] {
  const got = typeOf(value);
  const isNumber = got === 'integer' || got === 'number';
  const wanted = schema['x-kubernetes-int-or-string'] ? ['integer', 'string'] : schema.type ? [schema.type] : [got];
  if (!wanted.includes(got) && !(wanted[0] === 'number' && isNumber))
    return [`${path}: ${got}, wanted ${wanted.join(' or ')}`];
  const problems: string[] = [];
  const expect = (holds: boolean, what: string): void => {
    if (!holds) problems.push(`${path}: ${what}`);
  };
  if (schema.enum) expect(schema.enum.includes(value), `${value} is none of ${schema.enum.join(', ')}`);
  if (isNumber) expect((value as number) >= (schema.minimum ?? -Infinity), `less than ${schema.minimum}`);
  if (typeof value === 'string') {
    expect(!schema.pattern || new RegExp(schema.pattern).test(value), `does not match ${schema.pattern}`);
    expect(value.length >= (schema.minLength ?? 0), 'too short');
    expect(value.length <= (schema.maxLength ?? Infinity), 'too long');
  }
  if (Array.isArray(value)) {
    expect(value.length >= (schema.minItems ?? 0) && value.length <= (schema.maxItems ?? Infinity), 'wrong length');
    problems.push(...value.flatMap((item, i) => crdProblems(item, schema.items ?? {}, `${path}[${i}]`)));
  } else if (got === 'object') {
    const object = value as Record<string, unknown>;
    for (const key of schema.required ?? []) expect(key in object, `${key} is missing`);
    for (const [key, item] of Object.entries(object)) {
      const inner = schema.properties?.[key] ?? schema.additionalProperties;
      if (inner) problems.push(...crdProblems(item, inner, `${path}.${key}`));
      // metadata is the API server's own, and has no properties here.
      else expect(!schema.properties || schema['x-kubernetes-preserve-unknown-fields'] === true, `${key} is unknown`);
    }
  }
  return problems;
}
