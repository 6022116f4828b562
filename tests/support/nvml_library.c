/* A libnvidia-ml.so.1 that answers as the driver of one machine did: what NvmlReader calls, nothing
 * else. TERRACE_NVML names the machine: h100 (a whole device, busy and hot), mig (an A100 cut into
 * slices, of which two are ours), lost (a device that fell off its bus), old (a card whose driver
 * tells only its name and memory). Values are those of the vendors' own tools on such devices. */
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, LOST = 15 };

static const char *machine(void) { const char *name = getenv("TERRACE_NVML"); return name ? name : ""; }
static int is(const char *name) { return strcmp(machine(), name) == 0; }

static char device[1], slices[2];

int nvmlInitWithFlags(unsigned flags) { (void)flags; return OK; }
int nvmlInit_v2(void) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "an error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
  (void)index; *handle = device; return is("lost") ? LOST : OK;
}
int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *pending) {
  (void)handle;
  if (is("old")) return NOT_SUPPORTED;
  *now = *pending = is("mig");
  return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) { (void)handle; *count = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **slice) {
  (void)handle;
  if (index > 1) return NOT_FOUND;
  *slice = &slices[index];
  return OK;
}
int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) {
  const char *id = handle == &slices[0]   ? "MIG-5c89852c-d268-c3f3-1b07-005d5ae1dc3f"
                   : handle == &slices[1] ? "MIG-63feeb45-94c6-b9cb-78ea-98e9b7a5be6b"
                                          : "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6";
  strncpy(text, id, size);
  return OK;
}
int nvmlDeviceGetName(void *handle, char *text, unsigned size) {
  (void)handle;
  strncpy(text, is("mig") ? "NVIDIA A100-SXM4-40GB MIG 1g.5gb" : "NVIDIA H100 80GB HBM3", size);
  return OK;
}
struct memory { unsigned long long total, free, used; };
int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory) {
  int is_slice = handle != device;
  memory->total = is_slice ? 5100273664ull : 85520809984ull;
  memory->used = is_slice ? 13631488ull : 62277025792ull;
  memory->free = memory->total - memory->used;
  return OK;
}
struct use { unsigned gpu, memory; };
int nvmlDeviceGetUtilizationRates(void *handle, struct use *use) {
  if (handle != device || is("old")) return NOT_SUPPORTED;
  use->gpu = 97; use->memory = 61;
  return OK;
}
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *degrees) {
  (void)handle; (void)sensor; *degrees = 71; return is("old") ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) {
  (void)handle; *milliwatts = 688412; return is("old") ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *milliwatts) {
  (void)handle; *milliwatts = 700000; return is("old") ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *reasons) {
  (void)handle; *reasons = 0x1 | 0x4 | 0x40; return is("old") ? NOT_SUPPORTED : OK;
}
