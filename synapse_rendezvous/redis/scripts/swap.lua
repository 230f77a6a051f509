-- Returns the new value up to the type; `stale` and the current value if the tag is not the expected one; or `full` and
-- the limit that is met. The expected tag has an `=` before it; `*` stands for any.
local expected, tag, write, size, max_total_bytes, max_updates, channel = unpack(ARGV, 2)
local session = parse(value)
if expected ~= '*' and expected ~= '=' .. session.tag then
  return {'stale', now, value, ended}
end
if session.updates >= tonumber(max_updates) then
  return {'full', now, 'max_updates', ended}
end
local growth = size - session.size
if not makes_room_for(growth, max_total_bytes) then
  return {'full', now, 'max_total_bytes', ended}
end
local head = store(tag, session.tag, session.expires, session.updates + 1, session.client, write)
count_bytes(growth)
publish(channel)
return {'ok', now, head, ended}
