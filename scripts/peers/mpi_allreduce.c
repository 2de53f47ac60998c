/* How fast MPI sums floats between processes: the peer of `cargo bench --bench allreduce`.
 *
 *   mpicc -O3 -o mpi_allreduce mpi_allreduce.c
 *   mpirun --bind-to core -np 2 ./mpi_allreduce 4096 16777216
 *
 * For each size in bytes rank 0 prints one JSON line: bytes, seconds_min, seconds_median, bus_bandwidth in bytes per second,
 * 2 (N - 1) / N * bytes / seconds. Sums are in place, as those of gradients are. Before each call every rank writes its
 * buffer, as a backward pass does, so that the bytes have to move between the cores; then all meet, and the call is
 * timed. A sample is the time of the slowest rank. Every sum is verified, outside the timing.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { SAMPLES_MIN = 20, SAMPLES_MAX = 4000, WARM_UP = 20 };
static const double SIZE_S = 1.0;

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double sample_s(float *buffer, int count, int turn, int rank, int world) {
    for (int i = 0; i < count; i++) buffer[i] = (float)((rank + 1) * ((i + turn) % 11));
    MPI_Barrier(MPI_COMM_WORLD);
    double begin = MPI_Wtime();
    MPI_Allreduce(MPI_IN_PLACE, buffer, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    double seconds = MPI_Wtime() - begin;
    for (int i = 0; i < count; i++)
        if (buffer[i] != (float)(world * (world + 1) / 2 * ((i + turn) % 11))) {
            fprintf(stderr, "mpi_allreduce: wrong sum of element %d of %d\n", i, count);
            MPI_Abort(MPI_COMM_WORLD, 1);
        }
    return seconds;
}

static void measure(long bytes, int rank, int world) {
    static double samples_s[SAMPLES_MAX], slowest_s[SAMPLES_MAX];
    int count = (int)(bytes / (long)sizeof(float));
    float *buffer = aligned_alloc(4096, (size_t)(bytes + 4095) / 4096 * 4096);
    if (count < 1 || buffer == NULL) {
        fprintf(stderr, "mpi_allreduce: no memory of %ld bytes\n", bytes);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    double fastest_s = SIZE_S;
    for (int turn = 0; turn < WARM_UP; turn++) {
        double begin = MPI_Wtime();
        sample_s(buffer, count, turn, rank, world);
        double seconds = MPI_Wtime() - begin;
        if (seconds < fastest_s) fastest_s = seconds;
    }
    double wanted = SIZE_S / fastest_s;
    int samples = wanted < SAMPLES_MIN ? SAMPLES_MIN : wanted > SAMPLES_MAX ? SAMPLES_MAX : (int)wanted;
    MPI_Bcast(&samples, 1, MPI_INT, 0, MPI_COMM_WORLD);
    for (int turn = 0; turn < samples; turn++) samples_s[turn] = sample_s(buffer, count, turn, rank, world);
    MPI_Reduce(samples_s, slowest_s, samples, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    if (rank == 0) {
        qsort(slowest_s, (size_t)samples, sizeof(double), ascending);
        double median_s = slowest_s[samples / 2];
        printf("{\"peer\":\"mpi\",\"world\":%d,\"bytes\":%ld,\"samples\":%d,\"seconds_min\":%.4e,\"seconds_median\":%.4e,\"bus_bandwidth\":%.4e}\n",
               world, bytes, samples, slowest_s[0], median_s, 2.0 * (world - 1) / world * (double)bytes / median_s);
    }
    free(buffer);
}

int main(int argc, char **argv) {
    int rank, world;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world);
    for (int arg = 1; arg < argc; arg++) measure(strtol(argv[arg], NULL, 10), rank, world);
    MPI_Finalize();
    return 0;
}
