// Names of VK_EXT_layer_settings that llama.cpp uses and Vulkan headers before 1.3.272 lack
// (Debian 12 has 1.3.239). Included before every C++ file of a Vulkan build; it does nothing with
// newer headers. The layout is that of the Vulkan specification, so a loader that knows the
// extension reads it and one that does not skips it by its sType.
#pragma once
#if defined(__cplusplus) && __has_include(<vulkan/vulkan_core.h>)
#include <vulkan/vulkan_core.h>
#if VK_HEADER_VERSION < 272
#include <cstdint>
#include <vector>
namespace vk {
enum class LayerSettingTypeEXT : int32_t { eBool32 = 0 };
struct LayerSettingEXT {
    const char * pLayerName;
    const char * pSettingName;
    LayerSettingTypeEXT type;
    uint32_t valueCount;
    const void * pValues;
};
struct LayerSettingsCreateInfoEXT {
    uint32_t sType = 1000496000;  // VK_STRUCTURE_TYPE_LAYER_SETTINGS_CREATE_INFO_EXT
    const void * pNext = nullptr;
    uint32_t settingCount;
    const LayerSettingEXT * pSettings;
    explicit LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> & settings)
        : settingCount(static_cast<uint32_t>(settings.size())), pSettings(settings.data()) {}
};
}  // namespace vk
#endif
#endif
