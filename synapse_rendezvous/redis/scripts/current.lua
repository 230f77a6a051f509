-- The current revision of a session that lives.
local value = redis.call('HGET', sessions, id)
if not value or is_over(value) then
  return {'gone', now, '', ended}
end
