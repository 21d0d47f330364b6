// Clipped n-gram matches of each sentence against its references, sentences in parallel.
//
// Order by order, an n-gram gets a number through a hash table of pairs (number of its first n-1 tokens, last
// token). Every probe compares both halves of the pair: two n-grams never share a number by chance.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  int64_t prefix, token;
  int32_t number; // 0 for an empty place, else the n-gram's number from 1
} Place;

static uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93ULL;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93ULL;
  return x ^ (x >> 32);
}

static int32_t number_of(Place *table, uint64_t mask, int64_t prefix, int64_t token, int32_t *used) {
  uint64_t place = mix((uint64_t)prefix * 0x9e3779b97f4a7c15ULL ^ mix((uint64_t)token)) & mask;
  while (table[place].number) {
    if (table[place].prefix == prefix && table[place].token == token) return table[place].number;
    place = (place + 1) & mask;
  }
  table[place] = (Place){prefix, token, ++*used};
  return *used;
}

// candidates (batch, width), references (batch, refs, ref_width); matches (batch, max_n). Returns 0, or 1 if
// memory ran out.
int count_matches(int64_t batch, int64_t width, int64_t refs, int64_t ref_width, int64_t max_n,
                  const int64_t *candidates, const int64_t *candidate_length, const int64_t *references,
                  const int64_t *reference_length, int64_t *matches) {
  int64_t tokens = width + refs * ref_width;
  uint64_t places = 16;
  while ((int64_t)places < 2 * tokens) places *= 2;
  int failed = 0;
#pragma omp parallel
  {
    Place *table = malloc(places * sizeof(Place));
    int64_t *numbers = malloc((tokens + 1) * sizeof(int64_t));
    int32_t *own = malloc((tokens + 1) * sizeof(int32_t)), *most = malloc((tokens + 1) * sizeof(int32_t));
    int32_t *here = malloc((tokens + 1) * sizeof(int32_t));
    if (!table || !numbers || !own || !most || !here) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic, 4)
    for (int64_t row = 0; row < batch; row++) {
      if (failed) continue;
      // A sentence needs no larger a table than its own tokens ask for.
      int64_t present = candidate_length[row];
      for (int64_t r = 0; r < refs; r++) present += reference_length[row * refs + r];
      uint64_t size = 16;
      while ((int64_t)size < 2 * present) size *= 2;
      memset(numbers, 0, (tokens + 1) * sizeof(int64_t));
      for (int64_t n = 1; n <= max_n; n++) {
        int32_t used = 0;
        memset(table, 0, size * sizeof(Place));
        memset(own, 0, (present + 1) * sizeof(int32_t));
        memset(most, 0, (present + 1) * sizeof(int32_t));
        for (int64_t s = 0; s <= refs; s++) {
          const int64_t *ids = s ? references + (row * refs + s - 1) * ref_width : candidates + row * width;
          int64_t length = s ? reference_length[row * refs + s - 1] : candidate_length[row];
          int64_t *own_numbers = numbers + (s ? width + (s - 1) * ref_width : 0);
          int64_t grams = length - n + 1;
          if (s) memset(here, 0, (present + 1) * sizeof(int32_t));
          for (int64_t i = 0; i < grams; i++) {
            // numbers[i] still holds the (n-1)-gram that begins here: it is read before it is replaced.
            int32_t number = number_of(table, size - 1, own_numbers[i], ids[i + n - 1], &used);
            own_numbers[i] = number;
            if (!s)
              own[number]++;
            else if (++here[number] > most[number])
              most[number] = here[number];
          }
        }
        int64_t total = 0;
        for (int32_t g = 1; g <= used; g++) total += own[g] < most[g] ? own[g] : most[g];
        matches[row * max_n + n - 1] = total;
      }
    }
    free(table);
    free(numbers);
    free(own);
    free(most);
    free(here);
  }
  return failed;
}
