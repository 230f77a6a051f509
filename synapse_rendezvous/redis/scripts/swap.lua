-- Returns the new value up to the type; `stale` and the current value if the tag is not the expected one; `kept`, the
-- outcome after an `=`, and the current value if the transaction is known; or `full` and the limit that is met. The
-- expected tag has an `=` before it; `*` stands for any. A write without a transaction has an empty key for it.
local expected, tag, write, size, max_total_bytes, max_updates, channel = unpack(ARGV, 2)
local transaction, max_outcomes = unpack(ARGV, 9)
local session = parse(value)
local is_expected = expected == '*' or expected == '=' .. session.tag
local outcomes = transaction ~= '' and (redis.call('HGET', sessions, outcomes_of(id)) or '')
if outcomes then
  local _, key_end = string.find(outcomes, transaction, 1, true)
  if key_end then
    return {'kept', now, '=' .. string.sub(outcomes, key_end + 1, key_end + 20) .. value, ended}
  end
  if #outcomes >= tonumber(max_outcomes) * 37 then
    return {'full', now, 'max_updates', ended}
  end
end
local function keep(outcome)
  if outcomes then
    redis.call('HSET', sessions, outcomes_of(id), outcomes .. transaction .. outcome)
  end
end
if not is_expected then
  keep(string.rep('.', 20))
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
keep(tag)
count_bytes(growth)
publish(channel)
return {'ok', now, head, ended}
