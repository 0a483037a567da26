-- Health of Belay's kinds for Argo CD: resource.customizations.health.belay.dev_KIND, the same for every kind.
-- Reads the conditions Stalled and Ready, and only where they are about the present generation.
local health = {status = "Progressing", message = "Belay has not looked at it yet"}
if obj.status == nil or obj.status.conditions == nil then
  return health
end
if obj.status.observedGeneration ~= nil and obj.status.observedGeneration ~= obj.metadata.generation then
  return health
end

local by_type = {}
for _, condition in ipairs(obj.status.conditions) do
  by_type[condition.type] = condition
end
local ready, stalled = by_type["Ready"], by_type["Stalled"]
if ready == nil then
  return health
end

health.message = ready.reason
if ready.message ~= nil and ready.message ~= "" then
  health.message = ready.reason .. ": " .. ready.message
end
if stalled ~= nil and stalled.status == "True" then
  health.status = "Degraded"
elseif ready.status == "True" then
  health.status = "Healthy"
elseif ready.reason == "Suspended" then
  health.status = "Suspended"
end
return health
