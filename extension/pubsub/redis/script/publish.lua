-- KEYS: the topic, the publication's ID.
-- ARGV: channel, kind, record, number of messages to keep, age, idle, fresh epoch, persistent, how long the ID is remembered.
-- Times are in milliseconds. Returns epoch, offset and whether the ID was known.
local keep, age, idle, remember = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[9])
if remember > 0 then
	local before = redis.call('GET', KEYS[2])
	if before then
		local epoch, at = string.match(before, '^(%d+) (%d+)$')
		return {tonumber(epoch), tonumber(at), 1}
	end
end
local epoch = '0'
if keep > 0 then
	open(KEYS[1], true, ARGV[7], ARGV[8] == '1')
	topic.offset = topic.offset + 1
	epoch = topic.epoch
	local id = int(topic.offset) .. '-' .. int(now)
	redis.call('XADD', KEYS[1], 'MAXLEN', '=', int(keep), id, 'm', ARGV[3])
	redis.call('XGROUP', 'SETID', KEYS[1], topic.name, id)
	if age > 0 then trim(KEYS[1], age) end
	live(KEYS[1], age, idle)
end
if remember > 0 then redis.call('SET', KEYS[2], epoch .. ' ' .. int(topic.offset), 'PX', int(remember)) end
redis.call('PUBLISH', ARGV[1], ARGV[2] .. epoch .. ' ' .. int(topic.offset) .. ' ' .. int(now) .. ' ' .. run .. '\n' .. ARGV[3])
return {tonumber(epoch), topic.offset, 0}
