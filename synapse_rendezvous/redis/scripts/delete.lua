-- Returns the last value up to the type; or `stale` and the current value, as swap.lua does.
local expected, channel = unpack(ARGV, 2)
local session = parse(value)
if expected ~= '*' and expected ~= '=' .. session.tag then
  return {'stale', now, value, ended}
end
drop(id)
count(-1, 0 - session.size, session.client)  -- Redis takes no -0
publish(channel)
return {'ok', now, session.head, ended}
