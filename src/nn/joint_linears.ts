// Linears of one input whose parameters are neighbours in memory, as FSDP lays them out, run as one: one GEMM forward, one for the
// gradient of the input, and one that writes all gradients of weights where they are reduced.
import { linear } from '../autograd/functions/linear.ts';
import type { GradClaim, GradSink, HasGradSink } from '../autograd/record.ts';
import type { Handle } from '../native.ts';
import { fuses } from '../tensor/fusions.ts';
import { type Device, Tensor } from '../tensor/tensor.ts';
import type { Linear } from './layers.ts';
import type { AdjacentParameters, Parameter, ParameterOwner } from './parameter.ts';

/** The linears of one module that have one input; it keeps what they have in common from one forward to the next. */
export class JointLinears {
  private weight: JointParameter | undefined;
  private bias: JointParameter | undefined;

  /** (…, features of all), those of one after those of the other; undefined where each of them has to run by itself. */
  forward(x: Tensor, linears: readonly Linear[]): Tensor | undefined {
    if (!fuses(x.device, 'projections')) return undefined;
    const { deferWeightGrad } = linears[0]!;
    if (!linears.every((each) => each.isPlain && each.deferWeightGrad === deferWeightGrad)) return undefined;
    this.weight = joint(
      linears.map(({ weight }) => weight),
      this.weight,
    );
    if (!this.weight) return undefined;
    const biases = linears.flatMap(({ bias }) => bias ?? []);
    this.bias = biases.length === linears.length ? joint(biases, this.bias) : undefined;
    if (biases.length > 0 && !this.bias) return undefined;
    return linear(x, this.weight, this.bias, x.dtype, deferWeightGrad);
  }
}

/** `parts` as one parameter, which `last` may be already; undefined where they are no neighbours, or not all alike. */
function joint(parts: readonly Parameter[], last: JointParameter | undefined): JointParameter | undefined {
  const { owner, dtype, requiresGrad } = parts[0]!;
  if (!owner || parts.some((part) => part.requiresGrad !== requiresGrad || part.gradSum)) return undefined;
  const made = last?.isOf(parts, owner) ? last : JointParameter.of(parts, owner);
  if (!made) return undefined;
  made.dtype = dtype; // FSDP changes that of the parts
  made.requiresGrad = requiresGrad;
  return made;
}

/** Neighbours as one leaf of the graph: their values and the place of their gradients are read where their owner has them. */
class JointParameter extends Tensor implements HasGradSink {
  readonly isParameter = true as const;
  readonly gradSum = undefined;
  private readonly parts: readonly Parameter[];
  private readonly owner: ParameterOwner;
  private readonly place: AdjacentParameters;

  private constructor(parts: readonly Parameter[], owner: ParameterOwner, place: AdjacentParameters) {
    const [first] = parts as [Parameter];
    super(undefined, [parts.reduce((sum, part) => sum + part.size(0), 0), ...first.shape.slice(1)], first.dtype);
    this.parts = parts;
    this.owner = owner;
    this.place = place;
  }

  static of(parts: readonly Parameter[], owner: ParameterOwner): JointParameter | undefined {
    const rows = parts.map((part) => part.shape.slice(1).join());
    if (rows.some((row) => row !== rows[0])) return undefined;
    const place = owner.adjacent(parts);
    return place && new JointParameter(parts, owner, place);
  }

  isOf(parts: readonly Parameter[], owner: ParameterOwner): boolean {
    return owner === this.owner && parts.every((part, i) => part === this.parts[i]);
  }

  override get device(): Device {
    return this.owner.device;
  }

  override get handle(): Handle {
    return this.place.data().handle;
  }

  override detach(): Tensor {
    return this.view(this.shape);
  }

  gradSink(): GradSink {
    return this.place.gradSink();
  }

  claimGrad(): GradClaim | undefined {
    return undefined;
  }
}
