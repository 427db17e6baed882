// Whether this processor and system support the instructions of this kernel library. Called before any kernel, so it is compiled
// without those instructions.
#include <sys/syscall.h>
#include <unistd.h>

#if !defined(ASURGE_AVX2)
namespace {

bool has_avx512() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace
#endif

extern "C" int asurge_available() {
#if defined(ASURGE_AVX2)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#elif defined(ASURGE_AVX512)
  return has_avx512();
#else
  if (!has_avx512() || !__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-bf16") ||
      !__builtin_cpu_supports("amx-int8")) {
    return 0;
  }
  // Tile registers must be requested from the operating system, once per process.
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#endif
}
