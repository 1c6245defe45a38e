// A field above a long table: it leaves the rows that have all its words. Without it the table is whole
document.addEventListener('DOMContentLoaded', () => {
  const table = document.querySelector('#every-network table');
  if (!table) return;
  const rows = [...table.tBodies[0].rows], texts = rows.map(o => o.textContent.toLowerCase());
  const find = Object.assign(document.createElement('input'), {type: 'search', id: 'find', placeholder: 'resnet50 timm exact'});
  const label = document.createElement('label'), count = document.createElement('output');
  label.append('Find: ', find, ' ', count);
  const show = () => {
    const words = find.value.toLowerCase().split(/\s+/);
    rows.forEach((o, i) => o.hidden = !words.every(word => texts[i].includes(word)));
    count.textContent = `${rows.filter(o => !o.hidden).length} of ${rows.length} networks`;
  };
  find.addEventListener('input', show);
  (table.closest('.table-wrapper') || table).before(label);
  show();
});
