// Open MPI's mpirun, and the launchers of MPICH and Intel MPI (PMI). Neither says which host rank 0 is on.
import type { Variables } from '../../environment.ts';
import { count, type Place, readInteger } from './values.ts';

export const isOpenMpiRank = (env: Variables): boolean => env.OMPI_COMM_WORLD_RANK !== undefined;

export function openMpiPlace(env: Variables): Place {
  const worldSize = count(env, 'OMPI_COMM_WORLD_SIZE');
  const rank = readInteger(env, 'OMPI_COMM_WORLD_RANK', 0, worldSize - 1);
  const localWorldSize = readInteger(env, 'OMPI_COMM_WORLD_LOCAL_SIZE', 1, worldSize);
  const localRank = readInteger(env, 'OMPI_COMM_WORLD_LOCAL_RANK', 0, localWorldSize - 1);
  return { rank, worldSize, localRank, localWorldSize };
}

/**
 * Hydra, which starts MPICH's and Intel's ranks, sets MPI_LOCALRANKID too. `srun --mpi=pmi2` sets PMI_RANK alone: its
 * ranks are Slurm's.
 */
export const isPmiRank = (env: Variables): boolean =>
  env.PMI_RANK !== undefined && (env.MPI_LOCALRANKID !== undefined || env.SLURM_STEP_ID === undefined);

export function pmiPlace(env: Variables): Place {
  const worldSize = count(env, 'PMI_SIZE');
  const rank = readInteger(env, 'PMI_RANK', 0, worldSize - 1);
  if (worldSize === 1) return { rank, worldSize, localRank: 0, localWorldSize: 1 };
  const localWorldSize = readInteger(env, 'MPI_LOCALNRANKS', 1, worldSize);
  const localRank = readInteger(env, 'MPI_LOCALRANKID', 0, localWorldSize - 1);
  return { rank, worldSize, localRank, localWorldSize };
}
