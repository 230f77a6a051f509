-- Returns the value up to the type; or `full` and the limit that is met.
local tag, write, size, client, ttl, grace, max_sessions, max_total_bytes = unpack(ARGV, 2)
local max_client_sessions, crowded_sessions, crowded_client_sessions = unpack(ARGV, 10)
if not is_whole then
  redis.call('UNLINK', sessions, queue, totals)
  is_whole = true  -- as soon as this session is in it
end
sweep()  -- no fewer than one creation adds, so the queue does not grow with expired sessions
local function fewer_than(max)
  return makes(function() return total('sessions') < tonumber(max) end)
end
if not fewer_than(max_sessions) then
  return {'full', now, 'max_sessions', ended}
end
local limit, max = 'per_client.max_sessions', max_client_sessions
if not fewer_than(crowded_sessions) then
  limit, max = 'per_client.crowded_sessions', crowded_client_sessions
end
for _, key in ipairs(quota_keys(client)) do
  if not makes(function() return total(key[1]) < max * key[2] end) then
    return {'full', now, limit, ended}
  end
end
if not makes_room_for(tonumber(size), max_total_bytes) then
  return {'full', now, 'max_total_bytes', ended}
end
local expires = now + ttl
local head = store(tag, string.rep('.', 20), expires, 0, client, write)
redis.call('RPUSH', queue, id)
count(1, size, client)
-- By this key, because it is new whenever another one is.
if redis.call('PTTL', sessions) < ttl + grace then
  for _, key in ipairs(KEYS) do
    redis.call('PEXPIREAT', key, expires + grace)
  end
end
return {'ok', now, head, ended}
